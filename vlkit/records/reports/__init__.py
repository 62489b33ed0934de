"""A run as a report: HTML, PDF, Markdown and citations."""
