"""Experiments, one file each: ``python -m experiments list``.

How to write one: a public module of this package is an experiment (there is no registry); its docstring is its
title and introduction. It has

- ``Config``: a frozen dataclass of scalars, strings and tuples, each field documented by a string under it.
  ``field(metadata={"hash": False})`` marks what cannot change a result (the directory of a data set);
- ``SMOKE``: a ``Config`` that runs in under ten seconds on two cores;
- ``run(config, session=NULL_SESSION)``: a dict of arrays, a pure function of the config;
- ``figure(results)``: a Matplotlib figure.

It may have ``table(results)``, which returns headers and rows of strings, ``files(results)``, which returns the bytes
of further files by their names, written beside the results, ``NOT_FINITE``, the names of the
arrays that may hold infinities or NaN, and ``NOT_REPRODUCIBLE``, the names of those with measured times (the
tests refuse the one and the other elsewhere).

::

    from experiments._run import NULL_SESSION, Session, key_for

    def run(config: Config, session: Session = NULL_SESSION) -> dict[str, np.ndarray]:
        curves = {}
        with session.progress("training", total=len(config.methods)) as meter:
            for method in config.methods:
                key = key_for(config.seed, "training", method)
                stage = session.stage(method, functools.partial(train, config, method, key))
                curves[method] = stage["loss"]
                meter.advance(loss=curves[method][-1])
        return curves

A stage is kept when it is done, so the same command after Ctrl-C or a kill goes on from there and ends in the
same bytes. A long training is a ``session.scan``, which makes a checkpoint every second or so (of the carry, however it
is sharded, and of what each iteration put out); one inside a stage is a scan of ``session.within(stage)``. Results live
in ``results/NAME/<hash of the config>/``.
"""
