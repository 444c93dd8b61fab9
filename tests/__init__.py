"""A package, so that no `tests` of another distribution is found first: older Ultralytics releases install one."""
