"""What whoever is on call reads: structured logs with ids, a record of every try of a stage, and Prometheus metrics."""
