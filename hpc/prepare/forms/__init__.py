"""Forms of tokens: what becomes of the ids that the first part of prepare.tokens made.

A form is a stage behind a barrier, as hpc.data.work and hpc.curate.settings have them: a struct in
hpc/prepare/settings that is a `Form`, and a module here with

    def freeze(settings, upstream, superseded):      # in the barrier: cut the documents into shards
        yield from documents.planned(upstream, superseded, settings.hold_out, most_bytes=..., most=...)

    def start(settings) -> Callable[[Work], Made]:   # in the array: make one of them
        def process(work: Work) -> Made:
            plan = documents.plan_of(work.rows)      # tables, records (where the ids lie), meta: tokenizer, shape, ...
            rows = documents.rows_of(plan)           # uuid, start, caption, fps, source, ... of each document, in order
            documents.split_of(place, plan.total, settings.split)       # "train", "valid" or "test"

`upstream` has what the stage of the spec needs, too: text embeddings, say. Files with names of their own go into
`Made.tree`. With `frames: 1, windows: all` each frame of a clip is a document, and `start` is its number.
"""
