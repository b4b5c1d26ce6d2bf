"""Run what a model wrote: programs, each in a confined process of its own, and readers of hostile text.

`levels` says how strong the confinement is and finds the strongest that works here; `run` is the side that asks;
`forker` keeps a warm interpreter and forks it for each program; `confine` takes the rights away; `program` calls the
program's function. `process` is for workers of ours that read text of models without running it.
"""
