"""The script of the browser page of `outputs.page`: `src`, built by `make viewer` into `dist`."""
