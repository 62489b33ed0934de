"""One file for each format: how its pictures with boxes are read and written."""
