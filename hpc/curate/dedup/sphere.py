"""Unit vectors on torch, CPU or GPU: spherical k-means, and which rows have a near twin. All of it is matrix products
in tiles of bounded size, each reduced while it is in the cache.

Why no pair is missed. Rows a and b are twins when a.b >= 1 - eps, that is when the angle between them is at most
theta = acos(1 - eps). Let p be a's nearest centroid and q another one, b's. With the unit vector u = (q - p) / |q - p|,
nearest means a.u <= 0 (centroids are 1 long, and a is no nearer to q than to p) and b.u >= 0: the two lie on different
sides of the hyperplane u.x = 0. The angle between b and that hyperplane, the shortest way to any point of it, is
asin(b.u). The arc from b to a crosses it, so asin(b.u) <= theta, or

    b.q - b.p <= |q - p| sin(theta).

Whoever fulfils this is a *guest* in p. Of each two clusters one sends its guests to the other (`sends`), so every pair
of twins is compared: in the cluster that is home to both, or where one is at home and the other a guest. (The triangle
inequality alone gives a wider bound, angle(b, p) <= angle(b, q) + 2 theta.) Guests are not compared with each other.
With n rows at home in each of k clusters and g guests for each row, that is k n (n / 2 + g n) products; g is at most
(k - 1) / 2, so it is never more than comparing all with all.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

In = TypeVar("In")
Out = TypeVar("Out")
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]

SLACK = 1e-5  # in cosines: more than the rounding of 32-bit sums
SAME = 1e-6  # a later row must be nearer by this to count: of several copies of one thing the first is named
TILE = {"cpu": (256, 4096), "cuda": (2048, 65536)}  # rows, columns: 4 MiB stay in a cache, 512 MiB keep a GPU busy
NOTHING = -2.0  # below any cosine
SEEDS = 10  # rows of the sample for each centroid from which k-means++ draws its first ones
GAIN = 1e-5  # k-means ends when the mean cosine rises by less


def device() -> torch.device:
    """A GPU, if there is one."""
    torch.backends.cuda.matmul.allow_tf32 = False  # its 10 bits are coarser than eps
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def unit(vectors: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """(the rows that have a direction, made 1 long; which they are): none with NaN, infinity or zeros alone."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    good = np.isfinite(norms) & (norms > 0)
    if not good.all():
        vectors, norms = vectors[good], norms[good]
    return (vectors / norms[:, None]).astype(np.float32), good


def blocks(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


class Tiles:
    """Products of blocks of rows, each in a buffer that is used again and again: fresh memory costs page faults.

    On the CPU each thread works on tiles of its own: threads that share one product wait for each other at its end.
    """

    def __init__(self, on: torch.device | None = None) -> None:
        self.on = on or device()
        self.rows, self.columns = TILE[self.on.type]
        # lifts what is not before a row out of the way, where a block of rows is compared with itself
        self.after = torch.full((self.rows, self.rows), 2 * NOTHING, device=self.on).triu_()
        self._own = threading.local()
        threads = torch.get_num_threads() if self.on.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def each(self, function: Callable[[In], Out], items: Iterable[In], alone: bool = False) -> Iterable[Out]:
        """map(), in order, by all threads; alone: by this one. Not within itself, unless alone."""
        return map(function, items) if alone or self.on.type != "cpu" else self._pool.map(function, items)

    def product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a @ b.T, valid until the next call in this thread."""
        size = len(a) * len(b)
        if getattr(self._own, "size", -1) < size:
            self._own.size, self._own.buffer = size, torch.empty(size, device=self.on)
        return torch.mm(a, b.T, out=self._own.buffer[:size].view(len(a), len(b)))

    def beside(self, columns: int) -> int:
        """How many rows make a tile with so many columns."""
        return max(1, self.rows * self.columns // columns)

    def best(self, tile: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(largest value, its column) of each row; of equal ones the first."""
        if self.on.type != "cpu":
            values, columns = tile.max(1)
            return values, columns
        array = tile.numpy()  # numpy looks through it at 10 values a nanosecond, several times as fast as torch on CPUs
        columns = array.argmax(1)
        return torch.from_numpy(array[np.arange(len(array)), columns]), torch.from_numpy(columns)

    def at_least(self, tile: torch.Tensor, limit: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of the values >= limit, which is one number, or one [rows, 1] for each row."""
        if self.on.type != "cpu":
            rows, columns = (tile >= limit).nonzero(as_tuple=True)
            return rows, columns
        floor = limit.numpy() if isinstance(limit, torch.Tensor) else limit
        places = divmod(np.flatnonzero(tile.numpy() >= floor), tile.shape[1])
        return torch.from_numpy(places[0]), torch.from_numpy(places[1])


def nearest(x: torch.Tensor, centroids: torch.Tensor, tiles: Tiles) -> tuple[torch.Tensor, torch.Tensor]:
    """(cosine [N], number [N]) of each row's nearest centroid."""
    look = lambda part: tiles.best(tiles.product(x[part], centroids))
    found = list(tiles.each(look, blocks(len(x), tiles.beside(len(centroids)))))
    return torch.cat([top for top, _ in found]), torch.cat([places for _, places in found])


def kmeans(
    rows: Floats, k: int, max_iter: int, seed: int, tiles: Tiles, tick: Callable[[int], None] = lambda done: None
) -> tuple[Floats, int]:
    """(centroids [k, D], 1 long; how many rounds it took) of unit rows [N, D], N >= k.

    k-means++ draws the first centroids; a round gives each row to the nearest by cosine and moves each centroid to the
    mean of its rows. One without rows moves to the row that is farthest from its own. tick(rounds so far) may raise.
    """
    x = torch.from_numpy(rows).to(tiles.on)
    centroids, before = _seeds(x, k, seed, tick), -math.inf
    for done in range(max_iter):
        tick(done)
        top, places = nearest(x, centroids, tiles)
        sums = torch.zeros_like(centroids)
        sizes = torch.bincount(places, minlength=k)
        if tiles.on.type == "cpu":
            sums.index_add_(0, places, x)
        else:  # sorted, since atomics would add in another order each time
            sums = torch.segment_reduce(x[places.argsort(stable=True)], "sum", lengths=sizes)
        empty = (sizes == 0).nonzero().flatten()
        if len(empty):
            sums[empty] = x[top.argsort(stable=True)[: len(empty)]]
        centroids = torch.nn.functional.normalize(sums, dim=1)
        mean = top.double().mean().item()
        if not len(empty) and mean - before < GAIN:
            return centroids.cpu().numpy(), done + 1
        before = mean
    return centroids.cpu().numpy(), max_iter


def _seeds(x: torch.Tensor, k: int, seed: int, tick: Callable[[int], None]) -> torch.Tensor:
    """k-means++: each next one is drawn with a chance that grows with its squared distance to the nearest so far."""
    dice = np.random.default_rng(seed)
    x = x[torch.from_numpy(np.sort(dice.permutation(len(x))[: SEEDS * k])).to(x.device)]
    chosen = [int(dice.integers(len(x)))]
    far = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    for draw in dice.random(k - 1):
        tick(0)
        far = torch.minimum(far, (1 - (x @ x[chosen[-1]]).double()).clamp(min=0))
        far[chosen[-1]] = 0
        heap = far.cumsum(0)
        place = torch.searchsorted(heap, heap[-1] * draw, right=True)
        chosen.append(min(int(place), len(x) - 1))
    return x[torch.tensor(chosen, device=x.device)].clone()


def sends(home: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """Of the clusters `home` and `to`, is it this one that sends its guests? Half of the others, for each."""
    return ((home + to) % 2 == 0) == (home > to)


def gaps(centroids: torch.Tensor) -> torch.Tensor:
    """|q - p| of all pairs, [k, k]."""
    return (2 - 2 * centroids @ centroids.T).clamp_(min=0).sqrt_()


def assign(
    rows: Floats, centroids: torch.Tensor, apart: torch.Tensor, eps: float, tiles: Tiles
) -> tuple[Longs, Doubles, Longs, Longs]:
    """(home [N], cosine distance to it [N], rows that are guests [G], and of which cluster [G]) of unit rows [N, D].

    apart: gaps(centroids). A row that is as near to several centroids, as far as 32 bits tell, is at home at the
    nearest by 64 bits: not where the size of a tile has it, so that the same row always lives in the same place.
    """
    sine = math.sin(math.acos(1 - eps)) if eps < 1 else 1.0
    widest = float(apart.max()) * sine + SLACK if len(centroids) > 1 else SLACK
    doubles = centroids.double()
    exact = doubles.cpu().numpy()

    def one(part: slice) -> tuple[Longs, Doubles, Longs, Longs]:
        x = torch.from_numpy(rows[part]).to(tiles.on)
        tile = tiles.product(x, centroids)
        top, home = tiles.best(tile)
        row, cluster = tiles.at_least(tile, (top - widest)[:, None])
        cosine = tile[row, cluster]
        tied = (cosine >= top[row] - 2 * SAME) & (cluster != home[row])
        if tied.any():
            _settle(rows[part], exact, home, row[tied].cpu().numpy(), cluster[tied].cpu().numpy())
        guest = (cosine >= top[row] - sine * apart[home[row], cluster] - SLACK) & (cluster != home[row])
        guest &= sends(home[row], cluster)
        cosines = torch.bmm(x.double()[:, None], doubles[home][:, :, None]).flatten()
        distances = 1 - cosines.cpu().numpy()
        return home.cpu().numpy(), distances, row[guest].cpu().numpy() + part.start, cluster[guest].cpu().numpy()

    found = list(tiles.each(one, blocks(len(rows), tiles.beside(len(centroids)))))
    homes, distances, guests, hosts = zip(*found, strict=True) if found else ((), (), (), ())
    whole = lambda parts, kind: np.concatenate([np.empty(0, kind), *parts])
    return whole(homes, np.int64), whole(distances, np.float64), whole(guests, np.int64), whole(hosts, np.int64)


def _settle(rows: Floats, exact: Doubles, home: torch.Tensor, tied: Longs, clusters: Longs) -> None:
    """Give rows that are near to several centroids to the nearest by 64 bits; of equal ones to the first."""
    for row in np.unique(tied):
        among = np.sort([int(home[row]), *clusters[tied == row]])
        home[row] = int(among[np.argmax(exact[among] @ rows[row].astype(np.float64))])


def earlier(
    home: Floats,
    guests: Floats,
    rank: Longs,
    guest_rank: Longs,
    eps: float,
    tiles: Tiles,
    check: Callable[[], None] = lambda: None,
    alone: bool = False,
) -> tuple[Floats, Longs]:
    """For each row of a cluster: (largest cosine to a row before it [n + m]; which row that is [n + m]).

    home: the n rows at home, unit, [n, D]; guests: [m, D]; each in rising order of rank, which is the row's place among
    both. Rows count on from those at home to the guests. At home every row is compared with all before it; between rows
    at home and guests only cosines >= 1 - eps are looked at. (-2, -1): there is none. alone: as in `Tiles.each`.
    """
    n, on = len(home), tiles.on
    fits = on.type == "cpu" or home.nbytes + guests.nbytes < torch.cuda.mem_get_info()[0] // 4
    x, y = (torch.from_numpy(one).to(on if fits else "cpu") for one in (home, guests))
    scores = np.full(n + len(guests), NOTHING, np.float32)
    twins = np.full(n + len(guests), -1, np.int64)
    ranks = np.concatenate([rank, guest_rank])
    floor = 1 - eps - SLACK

    def one(here: slice) -> tuple[slice, Floats, Longs, list[tuple[Floats, Longs, Longs]]]:
        a = x[here].to(on)
        best, place = torch.full((len(a),), NOTHING, device=on), torch.full((len(a),), -1, device=on)
        for there in blocks(here.stop, tiles.columns):
            check()
            tile = tiles.product(a, x[there].to(on))
            if there.stop == here.stop:  # columns are a multiple of rows: the end of this tile is the rows themselves
                tile[:, here.start - there.start :] += tiles.after[: len(a), : len(a)]
            value, column = tiles.best(tile)
            better = value > best + SAME
            best, place = torch.where(better, value, best), torch.where(better, column + there.start, place)
        told = []
        for there in blocks(len(guests), tiles.columns):
            check()
            row, column = tiles.at_least(tile := tiles.product(a, y[there].to(on)), floor)
            if len(row):
                cosine = tile[row, column].cpu().numpy()
                told.append(
                    _later(ranks, cosine, row.cpu().numpy() + here.start, column.cpu().numpy() + n + there.start)
                )
        return here, best.cpu().numpy(), place.cpu().numpy(), told

    for here, best, place, told in tiles.each(one, blocks(n, tiles.rows), alone):
        scores[here], twins[here] = best, place
        for cosine, later, before in told:
            better = cosine > scores[later] + SAME
            scores[later[better]], twins[later[better]] = cosine[better], before[better]
    return scores.clip(NOTHING, 1), twins


def _later(ranks: Longs, cosine: Floats, one: Longs, other: Longs) -> tuple[Floats, Longs, Longs]:
    """Pairs of rows with their cosine -> (cosine, later row, earlier row): of each later row its nearest one alone."""
    swap = ranks[one] < ranks[other]
    later, before = np.where(swap, other, one), np.where(swap, one, other)
    order = np.lexsort((ranks[before], -cosine, later))
    first = order[np.unique(later[order], return_index=True)[1]]
    return cosine[first], later[first], before[first]
