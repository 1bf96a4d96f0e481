"""Small volumes for the tests of experiments/brain, in the files and folders that the packages have."""

import nibabel
import numpy

from experiments.brain import sources, tasks

SHAPE = (22, 26, 20)  # of the made volumes, 8 mm: left to right, posterior to anterior, inferior to superior


def distance() -> numpy.ndarray:
    """From the centre, along each axis in parts of the half."""
    axes = [(numpy.arange(size) + 0.5) / size * 2 - 1 for size in SHAPE]
    return numpy.sqrt(sum(axis**2 for axis in numpy.meshgrid(*axes, indexing="ij")))


def hole() -> numpy.ndarray:
    """What Colin27's mask leaves out: a hole that is too wide to be closed, and a groove from outside."""
    x, y, z = numpy.indices(SHAPE)
    voxels = abs(x - 11) + abs(y - 13) + abs(z - 10) <= 4
    voxels[11, 20:, 10] = True
    return voxels


def save(source: str, role: str, values: numpy.ndarray, spacing: float = 8.0) -> None:
    path = sources.folder() / sources.SOURCES[source].files[role]
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = numpy.diag([spacing, spacing, spacing, 1.0])
    nibabel.save(nibabel.Nifti1Image(values.astype(numpy.float32), affine), path)


def make() -> None:
    """Fills the folder of volumes as `make volumes` does: spheres for heads, cuboids for regions."""
    radius, rng = distance(), numpy.random.default_rng(0)
    for name in tasks.HEADS:
        brain = radius < 0.7
        skull = (radius > 0.8) & (radius < 0.95)
        save(name, "t1", 80 * brain + 120 * skull + rng.normal(10, 3, SHAPE))
        save(name, "mask", brain & ~hole() if name == "colin27" else brain)
    white = 255 * (radius < 0.45)
    grey = 255 * ((radius >= 0.45) & (radius < 0.65))
    save("icbm152", "t1", (0.9 * white + 0.6 * grey + 50) * (radius < 0.8))
    save("icbm152", "grey", grey)
    save("icbm152", "white", white)
    for number, donor in enumerate(sources.DONORS):
        labels = numpy.zeros((20, 20, 20))
        for region in range(tasks.REGIONS):
            z, y, x = 4 * (region // 25), 4 * (region // 5 % 5), 4 * (region % 5)
            dx, dy, dz = 1 + region % 3, 1 + region // 3 % 3, 1 + region // 9 % 3
            labels[x : x + dx + 1, y : y + dy + 1, z : z + dz + 1] = region + 1
            # Each donor lacks another corner: no two have a shape in common.
            labels[x + dx * (number & 1), y + dy * (number >> 1 & 1), z + dz * (number >> 2)] = 0
        save("donors", donor, labels)
