"""Which teacher layers a student keeps.

Example, 8 of 24: `even` gives 0 3 7 10 13 16 20 23 (both ends stay), `every_third` gives 0 3 6 9 12 15 18 21,
`first` gives 0..7, `last` gives 16..23, and `ends` gives 0 1 2 3 20 21 22 23. `all` leaves none out. `auto` tries them
out on text.
"""

from collections.abc import Callable

from shortstack.model.files import InputError

EVERY = {"all": 1, "every_second": 2, "every_third": 3, "every_fourth": 4}
STRATEGIES = ("auto", "even", "first", "last", "ends", *EVERY)


def choose_layers(
    layers: str | list[int], total: int, search: Callable[[int], list[int]] | None = None, whose: str = "the teacher"
) -> list[int]:
    """Layers to keep, ascending, counted from 0.

    Args:
        layers: a list of layer numbers, or `STRATEGY:COUNT` such as `even:8`; `all`, `every_third`... need no count.
        total: layers there are.
        search: finds the given number of layers for `auto`, which needs the teacher itself and text.
        whose: layers these are, in words.

    Raises:
        InputError: a layer that is not there, one named twice or out of order, or an unknown strategy.

    Source: keeping every other layer is DistilBERT's initialisation (Sanh et al., 2019,
    https://arxiv.org/abs/1910.01108); Sajjad et al., 2023 (https://arxiv.org/abs/2004.03844) compare the others.
    """
    if isinstance(layers, str):
        return _by_strategy(layers, total, search)
    if not layers:
        raise InputError("layers: the list is empty; name at least one teacher layer, such as 0,2,5")
    if not all(type(layer) is int for layer in layers):
        raise InputError(f"layers: {layers} must be whole numbers, such as 0,2,5")
    for layer in layers:
        if not 0 <= layer < total:
            raise InputError(f"layers: {layer} is outside {whose}, which has layers 0 to {total - 1}")
    if sorted(set(layers)) != list(layers):
        raise InputError(f"layers: {layers} must ascend, each layer once")
    return list(layers)


def _by_strategy(text: str, total: int, search: Callable[[int], list[int]] | None) -> list[int]:
    name, _, number = text.partition(":")
    if name not in STRATEGIES:
        raise InputError(f"layers: {text!r} is neither a list of numbers nor one of {', '.join(STRATEGIES)}")
    if name in EVERY:
        if number:
            raise InputError(f"layers: {name} takes no count, got {text!r}")
        return list(range(0, total, EVERY[name]))
    if not number.isdecimal() or not 1 <= int(number) <= total:
        raise InputError(f"layers: {text!r} needs a count from 1 to {total}, such as {name}:{max(1, total // 3)}")
    count = int(number)
    if name == "auto":
        if search is None:
            raise InputError("layers: auto needs a teacher and text to try layers on")
        return search(count)
    if name == "first":
        return list(range(count))
    if name == "last":
        return list(range(total - count, total))
    if name == "ends":
        head = (count + 1) // 2
        return [*range(head), *range(total - (count - head), total)]
    if count == 1:
        return [total - 1]  # the layer whose output the teacher pools
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]
