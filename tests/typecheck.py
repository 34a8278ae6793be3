"""How the tests check types: beartype, with an int allowed where a float is asked for (PEP 484's numeric tower)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
