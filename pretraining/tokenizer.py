"""Build time: a byte-level BPE of the words that are trained, and bytes for the rest.

    python tokenizer.py --out tokenizer.json
    python tokenizer.py --check 1500    # how many tokens so many batches never hold

Pre-tokenisation and special tokens are Qwen2's. Chinese text is cut into words before training, so
that no merge is longer than a word; digits stay single and every byte has a token.
"""

import argparse
import collections
import itertools
import json
import random
from pathlib import Path

from questions import CHAT, Examiner, plain
from scenes import Art, sample_album, sample_clip, sample_scene
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from wordings import BETWEEN, EVERYDAY, LEADS, OPENERS, OPENERS_ZH, SYSTEMS, TRAILS, sample_system
from words import CHARACTERS, COLOR_NAMES, KINDS, SYNONYMS, SYNONYMS_ZH, ZH, plural

SIZE = 2000  # of the Chinese part
SPELLING = 400  # bytes and pieces that spell unknown English words
FEWEST = 30  # times that a merge must occur
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# Qwen2's own: contractions, words with one leading character, single digits, punctuation.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def new_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def world_texts(art, count=6000):
    """Questions and answers, the random letters of drawn words left out."""
    rng, examiner = random.Random(20), Examiner()
    photos = art.photographed()
    for i in range(count):
        if i % 2:
            art, photos = photos, art
        if i % 3 == 0:
            scene = sample_clip(rng, art, 112, 112, 8)
        elif i % 3 == 1:
            scene = sample_scene(rng, art, 224, 224)
            for word in scene.words:
                word.text = "hello"
        else:
            scene = sample_album(rng, art, [(168, 168)] * rng.choice([2, 3, 4]))
        for dialogue in examiner.dialogues(rng, scene, 10):
            for _, question, answer in dialogue:
                yield question
                yield plain(answer)
        yield sample_system(rng)
    for question, answer in CHAT * 20:
        yield question
        yield answer
    for text in [*SYSTEMS, *LEADS, *TRAILS, *BETWEEN, *OPENERS, *OPENERS_ZH]:
        yield from [text] * 30
    yield from [
        "You are a helpful assistant.",
        "system",
        "user",
        "assistant",
        "Picture 1: ",
        "Answer with one word.",
    ] * 400


def cut_words(text, jieba):
    """The pieces that BPE may merge within: Qwen2's, with Chinese runs cut into words."""
    import regex

    for special in SPECIAL_TOKENS:
        text = text.replace(special, "\n")
    for piece in regex.findall(QWEN2_PATTERN, text):
        yield from (piece,) if piece.isascii() else jieba.cut(piece)


def count_pieces(art):
    import jieba

    jieba.setLogLevel(60)
    for word in [*ZH.values(), *itertools.chain(*SYNONYMS_ZH.values())]:
        jieba.add_word(word, 10**7)
    pieces = collections.Counter()
    for text in world_texts(art):
        pieces.update(cut_words(text, jieba))
    for name in [*KINDS, *COLOR_NAMES, *map(plural, KINDS), *itertools.chain(*SYNONYMS.values())]:
        for word in name.split():
            pieces[" " + word] += 400
    for name in [*KINDS, *COLOR_NAMES]:  # as the first word of a short answer
        pieces[name.split()[0].capitalize()] += 150
    for word in ZH.values():
        pieces[word] += 600
    for word in EVERYDAY:
        pieces[word] += 20
        if word.isascii():
            pieces[" " + word] += 60
            pieces[word.capitalize()] += 15
    for character in CHARACTERS:
        pieces[character] += 1000
    return pieces


def learn_merges(pieces, size):
    """(vocabulary, merges) of a byte-level BPE over these pieces."""
    tokenizer = new_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=FEWEST,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        itertools.chain.from_iterable([p] * n for p, n in pieces.items()), trainer
    )
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def train(pieces):
    """English words are tokens as wholes; merges spell what is not, and cut Chinese into words.

    Merging would need every step on the way to a word as a token too, and none of those is trained.
    """
    english = {p: n for p, n in pieces.items() if p.isascii()}
    spelled = {p: n for p, n in english.items() if "ass" not in p}  # " ass" would be a piece
    chinese = {p: n for p, n in pieces.items() if not p.isascii()}
    spelling, merges = learn_merges(spelled, SPELLING)
    words, more_merges = learn_merges(chinese, SIZE)
    vocabulary = dict.fromkeys([*spelling, *words])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for piece, count in sorted(english.items()):
        if count >= FEWEST:
            vocabulary[byte_level.pre_tokenize_str(piece)[0][0]] = None
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = new_tokenizer()
    tokenizer.model = models.BPE(vocab=ids, merges=merges + more_merges, ignore_merges=True)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def count_unseen(path, atlas, batches):
    """(tokens that no batch of a run holds, of them single bytes, all)."""
    from batches import BatchMaker
    from train import HERE, load_config

    config = load_config([HERE / "config.toml", HERE / "restart.toml"])
    tokenizer = Tokenizer.from_file(str(path))
    maker = BatchMaker(config["data"], Art.load(atlas), tokenizer)
    seen = set()
    for number in range(batches):
        batch = maker.make(number, 0.5)
        seen.update(batch["ids"].unique().tolist(), batch["lead"].unique().tolist())
        seen.update(batch["prefix"].tolist())
    vocabulary = tokenizer.get_vocab()
    unseen = [token for token, index in vocabulary.items() if index not in seen]
    return len(unseen), sum(len(token) == 1 for token in unseen), len(vocabulary)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).parent
    parser.add_argument("--atlas", type=Path, default=here / "build/atlas.json")
    parser.add_argument("--out", type=Path, default=here / "tokenizer.json")
    parser.add_argument("--check", type=int, help="batches: only count what they never hold")
    arguments = parser.parse_args()
    if arguments.check:
        unseen, single, every = count_unseen(arguments.out, arguments.atlas, arguments.check)
        print(f"{unseen} of {every} tokens in no batch, {single} of them single bytes")
        return
    tokenizer = train(count_pieces(Art.load(arguments.atlas)))
    tokenizer.save(str(arguments.out))
    print(tokenizer.get_vocab_size(), "tokens,", arguments.out.stat().st_size >> 10, "KiB")


if __name__ == "__main__":
    main()
