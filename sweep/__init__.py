"""From a configuration to a finished record: plan, train, record, collect."""
