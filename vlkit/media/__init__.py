"""Pictures and clips from any source: upright pictures, timed frames."""

from vlkit.media.image import Image, load_image
from vlkit.media.video import Clip, Video, load_clip, probe_clip

__all__ = ["Clip", "Image", "Video", "load_clip", "load_image", "probe_clip"]
