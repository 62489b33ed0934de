"""One file for each format of pictures with boxes: read and written."""
