"""The plumbing of every service: settings, logs, traces, errors, channels, the server, the database, artifacts."""
