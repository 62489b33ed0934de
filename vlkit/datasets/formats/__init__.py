"""One file a format: how its pictures with boxes are read and written."""
