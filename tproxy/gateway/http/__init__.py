"""HTTP between clients and backends: codecs, exchanges, pools. The decisions are ``core/http_*``'s."""
