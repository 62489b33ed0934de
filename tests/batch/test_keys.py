"""The key of a row follows the model as it is in memory."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

import vlkit
from vlkit.batch.journal import row_key

OPTIONS = {"max_new_tokens": 8}
QUESTION = vlkit.user("What is this?", vlkit.sample("red_circle"))


@pytest.fixture
def own(tiny_folder):
    """A tiny model of one's own, to change, and how it is loaded."""
    return vlkit.load(tiny_folder("qwen2_5_vl"))


def key(vlm):
    return row_key(vlm, QUESTION, OPTIONS)


def test_the_same_model_has_the_same_key_in_every_process_and_folder(own, broken_folder, vlm, warm):
    code = f"""import vlkit
from vlkit.batch.journal import row_key
import torch
torch.set_num_threads(1)
question = vlkit.user("What is this?", vlkit.sample("red_circle"))
for folder in {["tiny", str(own.folder.path)]}:
    print(row_key(vlkit.load(folder), question, {OPTIONS}))"""
    done = warm.run("-c", code)
    assert done.stdout.split() == [key(vlm), key(own)], done.stderr
    moved = broken_folder.rename(broken_folder.with_name("elsewhere"))
    assert key(vlkit.load(moved)) == key(vlkit.load(moved)) not in (key(vlm), key(own))


@pytest.mark.parametrize("where", ["visual", "layers.1", "lm_head"])
def test_training_changes_the_key(own, where):
    before = key(own)
    parameter = next(p for name, p in own.model.named_parameters() if where in name)
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    parameter.grad = torch.zeros_like(parameter)
    parameter.grad.view(-1)[-1] = 1.0
    optimizer.step()
    assert key(own) != before


def test_settings_that_change_answers_change_the_key(own, tiny_folder):
    keys = [key(own)]
    keys.append(key(vlkit.load(tiny_folder("qwen2_5_vl"), max_image_tokens=4)))
    keys.append(key(vlkit.load(tiny_folder("qwen2_5_vl"), dtype="bfloat16")))
    own.model.generation_config.repetition_penalty = 1.5
    keys.append(key(own))
    own.processor.chat_template += " "
    keys.append(key(own))
    own.processor.image_processor.size = {"shortest_edge": 3136, "longest_edge": 4 * 3136}
    keys.append(key(own))
    assert len(set(keys)) == len(keys)


def test_an_adapter_changes_the_key_and_so_does_its_scale(own, tiny_folder, tmp_path):
    keys = [key(own)]
    network = AutoModelForImageTextToText.from_pretrained(tiny_folder("qwen2_5_vl"))
    for alpha in (8, 16):
        torch.manual_seed(0)
        config = LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj", "v_proj"])
        adapted = get_peft_model(network, config)
        adapted.save_pretrained(tmp_path / str(alpha))
        network = adapted.unload()
        loads = [vlkit.load(own.folder.path, adapter=tmp_path / str(alpha)) for _ in range(2)]
        assert key(loads[0]) == key(loads[1])
        keys.append(key(loads[0]))
    assert len(set(keys)) == 3
