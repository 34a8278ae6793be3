"""Broken files of every kind that is read, made from sound ones by seeded damage: whoever reads one gets one of our
errors, one printable line, in little time and memory. `python -m tests.broken 50000` tries as many.

    mutations.py   what can befall a file, by its kind
    samples.py     a sound folder for each reader
    readers.py     what a user would do with it
    trial.py       one case: copy, damage, read, judge
"""
