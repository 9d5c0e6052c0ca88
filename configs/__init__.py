"""Studies as YAML files: small differences to the commented defaults in `common/study.py`."""
