"""What to cite: the papers of the families that were used, the models, and vlkit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlkit.records.record import Record, read_run

_PAPERS = {  # family: key, title, authors, year, arXiv number
    "qwen_vl": (
        "bai2023qwenvl",
        "Qwen-VL: A Versatile Vision-Language Model for Understanding, Localization, Text Reading, "
        "and Beyond",
        "Bai, Jinze and Bai, Shuai and Yang, Shusheng and Wang, Shijie and Tan, Sinan and "
        "Wang, Peng and Lin, Junyang and Zhou, Chang and Zhou, Jingren",
        2023,
        "2308.12966",
    ),
    "qwen2_vl": (
        "wang2024qwen2vl",
        "Qwen2-VL: Enhancing Vision-Language Model's Perception of the World at Any Resolution",
        "Wang, Peng and Bai, Shuai and Tan, Sinan and Wang, Shijie and Fan, Zhihao and "
        "Bai, Jinze and Chen, Keqin and Liu, Xuejing and Wang, Jialin and Ge, Wenbin and "
        "Fan, Yang and Dang, Kai and Du, Mengfei and Ren, Xuancheng and Men, Rui and "
        "Liu, Dayiheng and Zhou, Chang and Zhou, Jingren and Lin, Junyang",
        2024,
        "2409.12191",
    ),
    "qwen2_5_vl": (
        "bai2025qwen25vl",
        "Qwen2.5-VL Technical Report",
        "Bai, Shuai and Chen, Keqin and Liu, Xuejing and Wang, Jialin and Ge, Wenbin and "
        "Song, Sibo and Dang, Kai and Wang, Peng and Wang, Shijie and Tang, Jun and "
        "Zhong, Humen and Zhu, Yuanzhi and Yang, Mingkun and Li, Zhaohai and Wan, Jianqiang and "
        "Wang, Pengfei and Ding, Wei and Fu, Zheren and Xu, Yiheng and Ye, Jiabo and "
        "Zhang, Xi and Xie, Tianbao and Cheng, Zesen and Zhang, Hang and Yang, Zhibo and "
        "Xu, Haiyang and Lin, Junyang",
        2025,
        "2502.13923",
    ),
    "qwen3_vl": (
        "bai2025qwen3vl",
        "Qwen3-VL Technical Report",
        "Bai, Shuai and Cai, Yuxuan and Chen, Ruizhe and Chen, Keqin and Chen, Xionghui and others",
        2025,
        "2511.21631",
    ),
}


_HUBS = {"huggingface": "https://huggingface.co/", "modelscope": "https://modelscope.cn/models/"}


def bibtex(run: Any) -> str:
    """BibTeX entries of vlkit, of the models of a run and of their families' papers.

    The bundled model is part of vlkit, whose entry is that of ``CITATION.cff``. A family without
    a paper (Qwen3.5) is cited by the model's page.

    Args:
        run: a Run, or its folder.
    """
    models = list(read_run(run).models.values())
    families = dict.fromkeys(model["family"] for model in models)
    entries = [_own(), *map(_paper, families), *_pages(models)]
    return "\n\n".join(filter(None, dict.fromkeys(entries))) + "\n"


def _own() -> str:
    import yaml

    citation = yaml.safe_load(_citation_file().read_text(encoding="utf-8"))
    names = [author.get("name") or _person(author) for author in citation["authors"]]
    authors = " and ".join(f"{{{name}}}" for name in names)
    fields = {"title": f"{{{citation['title']}}}", "author": authors}
    return _entry("software", "vlkit", fields | {"version": str(citation["version"])})


def _person(author: dict) -> str:
    return f"{author['family-names']}, {author['given-names']}"


def _citation_file() -> Path:
    package = Path(str(files("vlkit")))
    places = (package / "CITATION.cff", package.parent / "CITATION.cff")
    return next(place for place in places if place.is_file())


def _paper(family: str) -> str:
    if family not in _PAPERS:
        return ""
    key, title, authors, year, number = _PAPERS[family]
    fields = {"title": f"{{{title}}}", "author": authors, "year": str(year)}
    return _entry("article", key, fields | {"journal": f"arXiv preprint arXiv:{number}"})


def _pages(models: Iterable[dict]) -> Iterator[str]:
    """An entry for each model that has a page on a hub."""
    for model in models:
        if model.get("hub") in _HUBS and "/" in model["name"]:
            owner, _, name = model["name"].partition("/")
            fields = {"title": f"{{{name}}}", "author": f"{{{owner}}}"}
            fields["howpublished"] = rf"\url{{{_HUBS[model['hub']]}{model['name']}}}"
            if commit := model.get("commit") or model.get("revision"):
                fields["note"] = f"revision {commit}"
            yield _entry("misc", re.sub(r"\W+", "", name).lower(), fields)


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items()]
    return f"@{kind}{{{key},\n" + ",\n".join(lines) + "\n}"


def cited(record: Record) -> list[str]:
    """The keys of :func:`bibtex`'s entries."""
    return re.findall(r"^@\w+\{([^,]+),", bibtex(record), re.MULTILINE)
