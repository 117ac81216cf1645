"""One search: what is derived from stored codes, the scans, selection, and merging of results."""
