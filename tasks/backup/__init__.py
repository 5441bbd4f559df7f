"""Backup and restore of the three databases and the buckets (docs/backup.md, docs/adr/0008)."""
