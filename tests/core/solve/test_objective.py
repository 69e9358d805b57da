import pytest
import torch
from performer_faces import acted, aligned

from core.face.keypoints import GROUPS, KEYPOINTS, LEFT_EYE_BOX, MOUTH_BOX
from core.face.landmarks import (
    Observation,
    detect_landmarks,
    keypoint_error,
)
from core.face.network import FaceMesh
from core.solve.objective import TERMS, Objective, keypoint_loss, picture_losses, total_loss


@pytest.fixture(scope="module")
def faces():
    """Two people, the second with an open mouth; 96 px, float64."""
    moves = ({}, {"jaw": 0.7, "gaze_x": 0.6, "yaw": 8.0})
    return torch.cat([aligned(acted(person, *moves), 96) for person in (3, 11)]).double()


@pytest.fixture(scope="module")
def views(faces):
    with torch.no_grad():
        return detect_landmarks(faces.float())


def points(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return 192 * torch.rand(*shape, 86, 3, dtype=torch.float64, generator=generator)


def places(name):
    """Where a group's points are among the 86."""
    names = [n for n, members in GROUPS.items() for _ in members]
    return [i for i, n in enumerate(names) if n == name]


# -- eq. 2 -------------------------------------------------------------------------------------


def test_keypoint_loss_by_the_definition():
    a, b = points(0), points(1)
    expected = 0.0
    counts = {"right_eye": 21, "left_eye": 21, "mouth": 20, "outer_lips": 20, "head": 4}
    each = {"mouth": 5.0, "outer_lips": 4.0, "head": 24.0}
    for name, count in counts.items():
        rows = places(name)
        assert len(rows) == count
        p, q = a[rows].numpy(), b[rows].numpy()
        if name != "head":
            p, q = p - p.mean(0), q - q.mean(0)
        if name in ("mouth", "outer_lips"):
            p[:, 2] *= 0.3
            q[:, 2] *= 0.3
        weights = [24.0] * 5 if "eye" in name else []  # irises come last
        weights = [each.get(name, 8.0)] * (count - len(weights)) + weights
        for weight, x, y in zip(weights, p, q, strict=True):
            expected += weight * ((x - y) ** 2).sum() ** 0.5
    assert float(keypoint_loss(a, b, Objective())) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("part", ["right_eye", "left_eye", "mouth", "outer_lips"])
def test_where_a_part_is_does_not_count(part):
    a, b = points(0), points(1)
    moved = a.clone()
    moved[places(part)] += torch.tensor([7.0, -3.0, 2.0])
    for objective in (Objective(), Objective.paper()):
        same = keypoint_loss(a, b, objective)
        assert torch.allclose(keypoint_loss(moved, b, objective), same, rtol=1e-12)
    absolute = Objective(grouped=False)
    assert keypoint_loss(moved, b, absolute) != keypoint_loss(a, b, absolute)


def test_where_the_head_is_does_count():
    a = points(0)
    moved = a.clone()
    moved[places("head")] += torch.tensor([3.0, 4.0, 0.0])
    assert float(keypoint_loss(moved, a, Objective())) == pytest.approx(24 * 4 * 5, rel=1e-4)
    assert float(keypoint_error(moved, a)) == pytest.approx(4 * 5 / 86)


@pytest.mark.parametrize(
    ("part", "objective", "share"),
    [
        ("mouth", Objective(), 0.3),
        ("outer_lips", Objective(), 0.3),
        ("mouth", Objective.paper(), 1),
        ("left_eye", Objective(), 1),
        ("head", Objective(), 1),
    ],
)
def test_what_depth_counts(part, objective, share):
    """As a share of what the same counts sideways."""
    a = points(0)
    sideways, deeper = a.clone(), a.clone()
    first = places(part)[0]
    sideways[first, 0] += 20
    deeper[first, 2] += 20
    expected = share * float(keypoint_loss(sideways, a, objective))
    assert float(keypoint_loss(deeper, a, objective)) == pytest.approx(expected, rel=1e-3)


def test_the_paper_does_not_look_at_outer_lips():
    a, b = points(0), points(1)
    pouting = a.clone()
    pouting[places("outer_lips")] *= 1.2
    paper = Objective.paper()
    assert keypoint_loss(pouting, b, paper) == keypoint_loss(a, b, paper)
    assert keypoint_loss(pouting, b, Objective()) != keypoint_loss(a, b, Objective())


def test_an_iris_that_moves_within_its_eye_counts():
    a = points(0)
    moved = a.clone()
    moved[[i for i in places("left_eye") if KEYPOINTS[i] >= 473]] += torch.tensor([2.0, 0, 0])
    assert float(keypoint_loss(moved, a, Objective())) > 3 * 2 * 5 * 0.7


def test_keypoint_loss_gradient():
    a, b = points(0, 2).requires_grad_(), points(1, 2)
    assert torch.autograd.gradcheck(lambda a: keypoint_loss(a, b, Objective()), a)


def slope(function, x, seed=0, step=1e-8):
    """Gradient times a random direction: by autograd, and by central differences."""
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
    (gradient,) = torch.autograd.grad(function(x.requires_grad_()), x)
    with torch.no_grad():
        numeric = (function(x + step * direction) - function(x - step * direction)) / (2 * step)
    return float((gradient * direction).sum()), float(numeric)


def test_keypoint_gradient_through_the_landmark_network(faces):
    """Small steps: the network is piecewise linear, and long ones cross its corners."""
    mesh = FaceMesh().double()
    with torch.no_grad():
        wanted = detect_landmarks(faces[1:2], mesh).keypoints

    def loss(pictures):
        return keypoint_loss(detect_landmarks(pictures, mesh).keypoints, wanted, Objective()).sum()

    analytic, numeric = slope(loss, faces[:1].clone())
    assert abs(analytic) > 1
    assert analytic == pytest.approx(numeric, rel=1e-3)


# -- eqs. 3 and 4 ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["rms", "l2"])
@pytest.mark.parametrize("term", ["mouth", "eyes"])
def test_pixel_gradients(faces, views, term, norm):
    def at(i, pictures):
        return Observation(pictures, views.landmarks[i : i + 1].double())

    def loss(pictures):
        other = at(3, faces[3:])
        terms = picture_losses(at(0, pictures), other, other, Objective(norm=norm))
        return terms[term].sum()

    analytic, numeric = slope(loss, faces[:1].clone(), step=1e-6)
    assert abs(analytic) > 1e-4
    assert analytic == pytest.approx(numeric, rel=1e-5)


def test_pictures_equal_to_what_they_follow_cost_nothing(views):
    one = Observation(*(t[:1] for t in views))
    terms = picture_losses(one, one, one, Objective())
    assert all(float(value) < 0.01 for value in terms.values())  # px; the roots' epsilon


def test_the_mouth_is_compared_with_the_driver_and_the_eyes_with_the_centre(views):
    one, open_mouth = Observation(*(t[:1] for t in views)), Observation(*(t[1:2] for t in views))
    by_driver = picture_losses(one, open_mouth, one, Objective())
    by_centre = picture_losses(one, one, open_mouth, Objective())
    assert by_driver["mouth"] > 0.05 > 0.001 > by_driver["eyes"]
    assert by_centre["eyes"] > 0.02 > 0.001 > by_centre["mouth"]


def test_boxes_move_with_the_landmarks(views):
    """A picture shifted together with its landmarks has the same mouth and eyes."""
    one = Observation(*(t[:1] for t in views))
    px = 4  # of 96; landmarks are px of a 192 px crop of 0.96 of the side
    shifted = Observation(
        one.pictures.roll(px, -1),
        one.landmarks + torch.tensor([px * 192 / (96 * 0.96), 0.0, 0.0]),
    )
    terms = picture_losses(shifted, one, one, Objective())
    assert float(terms["mouth"]) < 0.001
    assert float(terms["eyes"]) < 0.001
    unmoved = picture_losses(Observation(shifted.pictures, one.landmarks), one, one, Objective())
    assert float(unmoved["mouth"]) > 0.02


def test_boxes_cover_the_named_points(views):
    """Outside the mouth's and the irises' boxes pixels may be anything."""
    one = Observation(*(t[:1] for t in views))
    xy = (one.landmarks[0, :, :2] / 192 - 0.5) * 0.96 + torch.tensor([0.5, 0.6])
    kept = torch.zeros(96, 96, dtype=torch.bool)
    for box in (MOUTH_BOX, LEFT_EYE_BOX, [p - 5 for p in LEFT_EYE_BOX]):
        low, high = (xy[[*box]].amin(0) * 96).floor().int(), (xy[[*box]].amax(0) * 96).ceil().int()
        kept[low[1] - 1 : high[1] + 2, low[0] - 1 : high[0] + 2] = True
    noisy = Observation(torch.where(kept, one.pictures, -one.pictures), one.landmarks)
    terms = picture_losses(noisy, one, one, Objective())
    assert float(terms["mouth"]) < 1e-4
    assert float(terms["eyes"]) < 1e-4


def test_rms_by_hand(views):
    """Black against grey is 0.5 everywhere, whatever the boxes' sizes."""
    flat = Observation(torch.full_like(views.pictures, -1.0), views.landmarks)
    grey = Observation(torch.zeros_like(views.pictures), views.landmarks.flip(0))
    terms = picture_losses(flat, grey, Observation(*(t[:1] for t in grey)), Objective())
    assert terms["mouth"].tolist() == pytest.approx([0.5] * 4, rel=1e-5)
    assert terms["eyes"].tolist() == pytest.approx([1.0] * 4, rel=1e-5)


# -- eq. 10, and what goes in --------------------------------------------------------------------


def test_total_is_the_weighted_sum_and_zero_switches_off():
    terms = {name: torch.tensor([float(i + 1)]) for i, name in enumerate(TERMS)}
    assert float(total_loss(terms, Objective())) == 1 + 20 * 2 + 5 * 3 + 30 * 4 + 100 * 5
    assert float(total_loss(terms, Objective.paper())) == 1 + 2 + 3 + 10 * 4 + 10 * 5
    off = Objective(mouth=0, eyes=0)
    assert float(total_loss(terms, off)) == 1 + 30 * 4 + 100 * 5


def test_the_neutral_offset_is_added_to_the_driver(views):
    generated, driving = Observation(*(t[:1] for t in views)), Observation(*(t[2:3] for t in views))
    offset = (generated.keypoints - driving.keypoints)[0]
    terms = picture_losses(generated, driving, generated, Objective(), offset)
    assert float(terms["keypoints"]) < 0.01
    assert float(picture_losses(generated, driving, generated, Objective())["keypoints"]) > 50
