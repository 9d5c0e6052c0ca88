"""Studies as YAML files: small differences to the commented defaults of `common/study.py` and its sections."""
