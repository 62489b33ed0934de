"""A run as a page: HTML, PDF, Markdown and citations."""
