"""What `holdfast.testing.store.StoreContract` is made of: one file per group of promises."""
