"""The training engine run on a GPU that is not there.

`device` builds and loads the stand-in for the driver, `watch` looks at every operation, `audit` runs trainings, and
`planted` holds faults that must be found.  The stand-in changes the whole process, so that an audit has one of its own:
see `__main__`.
"""
