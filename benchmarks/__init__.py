"""Measures: latency, throughput, stages, ISIC scores, and the report of them."""
