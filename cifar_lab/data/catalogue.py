"""The data sets that can be found and downloaded: what they are called, and their classes."""

from dataclasses import dataclass

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Entry:
    """A data set: its name, its classes in the order of their labels, its official archive.

    size: of the archive, bytes; folder: what it unpacks to; superclasses: of each class, where there are any.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    archive: str
    folder: str
    size: int
    superclasses: tuple[str, ...] = ()


CIFAR10 = Entry(
    "cifar10",
    "CIFAR-10",
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar-10-python.tar.gz",
    "cifar-10-batches-py",
    170_498_071,
)
SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}  # the fine and coarse label names of the official files
CIFAR100 = Entry(
    "cifar100",
    "CIFAR-100",
    tuple(name for names in SUPERCLASSES.values() for name in names.split()),  # ordered by superclass, as in figures
    "cifar-100-python.tar.gz",
    "cifar-100-python",
    169_001_437,
    tuple(superclass for superclass, names in SUPERCLASSES.items() for _ in names.split()),
)
ENTRIES = {entry.name: entry for entry in (CIFAR10, CIFAR100)}
