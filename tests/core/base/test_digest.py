import numpy as np
import torch

from core.base.digest import digest


def test_everything_about_a_part_counts():
    numbers = torch.arange(6.0)
    parts = [
        (numbers,),
        (numbers + 1e-6,),
        (numbers.reshape(2, 3),),
        (numbers.double(),),
        (numbers.bfloat16(),),
        (numbers, 1),
        (numbers, 1.0),
        (numbers, "1"),
        (1, numbers),
        (numbers[:3], numbers[3:]),
        ("ab", "c"),
        ("a", "bc"),
    ]
    assert len({digest(*some) for some in parts}) == len(parts)


def test_where_numbers_lie_does_not_count():
    numbers = torch.arange(6.0).reshape(2, 3)
    assert digest(numbers.T.contiguous().T) == digest(numbers) == digest(numbers.numpy())
    assert digest(torch.tensor(2)) == digest(np.array(2))
