"""The stages of the pipeline: each reads its inputs, has them worked on by the parts below, and writes its outputs."""
