"""Authors' commands: build and check the notebooks, write a release, make tables of documents."""
