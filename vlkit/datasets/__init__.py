"""Pictures with boxes, conversations and tables, in many formats.

| name | where | boxes |
|---|---|---|
| ``coco`` | a .json | ``[x, y, width, height]`` in pixels |
| ``yolo`` | a folder: ``labels/*.txt``, ``images/``, ``data.yaml`` | shares, by the middle |
| ``voc`` | a folder: ``Annotations/*.xml``, ``JPEGImages/`` | pixels counted from 1 |
| ``refcoco`` | a .jsonl: ``image``, ``sent``, ``bbox`` | ``[x1, y1, x2, y2]`` in pixels |
| ``label-studio`` | a .json export | percent |
| ``ms-swift`` | a .jsonl: ``messages``, ``images``, ``objects`` | pixels, or ``norm1`` |
| ``samples`` | vlkit's own folder with ``samples.json``; read only | pixels |
| a family, as ``qwen2_5_vl`` | a .jsonl of ``messages``, ``images`` | as that family writes |
"""

from vlkit.datasets.pictures import Scene
from vlkit.datasets.scenes import read_scenes, write_scenes

__all__ = ["Scene", "read_scenes", "write_scenes"]
