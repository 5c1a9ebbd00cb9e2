"""The browser page: `page` makes it, `src` is what runs in it, built by `make viewer` into `dist`."""
