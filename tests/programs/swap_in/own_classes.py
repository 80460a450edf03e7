"""Classes of a script: what calls get, change and return, and whether results are instances of the script's own classes."""

from __future__ import annotations

import abc
import collections
import dataclasses
import enum
import functools
import operator
import os
import sys
import tempfile
import typing
import weakref

PPE = bool(os.environ.get("PPE"))
if PPE:
    from concurrent.futures import ProcessPoolExecutor as Executor
else:
    from mpiexecutor import RMAChannelExecutor as Executor

T = typing.TypeVar("T")
Pair = collections.namedtuple("Pair", "left right")
Seconds = typing.NewType("Seconds", float)
Number = typing.Union[int, float]


class Color(enum.Enum):
    RED = 1
    GREEN = 2

    @property
    def other(self):
        return Color.GREEN if self is Color.RED else Color.RED


class Access(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Planet(enum.Enum):
    EARTH = ("earth", 9.81)
    MOON = ("moon", 1.62)

    def __init__(self, label, gravity):
        self.label = label
        self.gravity = gravity


def counter_of_ids(start=[0]):
    start[0] += 1
    return start[0]


@dataclasses.dataclass
class Sample:
    value: float
    tags: list[str] = dataclasses.field(default_factory=list)
    number: int = dataclasses.field(default_factory=counter_of_ids)
    scale: typing.ClassVar[float] = 2.0

    def scaled(self) -> float:
        return self.value * self.scale


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Point:
    x: int
    y: int = 0

    def __add__(self, other: Point) -> Point:
        return dataclasses.replace(self, x=self.x + other.x, y=self.y + other.y)


class Reading(typing.NamedTuple):
    time: float
    celsius: float = 20.0

    def kelvin(self) -> float:
        return self.celsius + 273.15


class Options(typing.TypedDict, total=False):
    depth: int
    name: str


@typing.runtime_checkable
class Runs(typing.Protocol):
    def run(self) -> str: ...


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...

    def __lt__(self, other):
        return self.area() < other.area()


class Square(Shape):
    __slots__ = ("side",)

    def __init__(self, side):
        super().__init__()
        self.side = side

    def area(self):
        return self.side**2


class Cube(Square):
    def area(self):
        return 6 * super().area()

    def run(self):
        return "runs"


@Shape.register
class Odd:
    def area(self):
        return 1


class Stack(typing.Generic[T]):
    def __init__(self):
        self.items: list[T] = []

    def push(self, item: T) -> Stack[T]:
        self.items.append(item)
        return self


class Plugins(type):
    found = {}

    def __new__(mcs, name, bases, space, **options):
        made = super().__new__(mcs, name, bases, space)
        if options.get("listed", True):
            if name in mcs.found:
                raise TypeError(f"{name} is there already")
            mcs.found[name] = made
        return made

    def __init__(cls, name, bases, space, **options):
        super().__init__(name, bases, space)

    def __len__(cls):
        return len(Plugins.found)


class Plugin(metaclass=Plugins, listed=False):
    pass


class Upper(Plugin):
    def __call__(self, text):
        return text.upper()


class Lower(Plugin):
    def __call__(self, text):
        return text.lower()


class Handlers:
    known = {}

    def __init_subclass__(cls, /, key, **others):
        super().__init_subclass__(**others)
        if key in Handlers.known:
            raise ValueError(f"two for {key}")
        Handlers.known[key] = cls


class JsonHandler(Handlers, key="json"):
    def handle(self, text):
        return "json:" + text


class CsvHandler(Handlers, key="csv"):
    def handle(self, text):
        return "csv:" + text


class Positive:
    """A descriptor that learns its name."""

    names = []

    def __set_name__(self, owner, name):
        self.name = "_" + name
        Positive.names.append(name)

    def __get__(self, instance, owner):
        return self if instance is None else getattr(instance, self.name)

    def __set__(self, instance, value):
        if value <= 0:
            raise ValueError(f"{self.name[1:]} must be positive")
        setattr(instance, self.name, value)


class Box:
    width = Positive()
    height = Positive()
    made = 0

    def __init__(self, width, height):
        self.width, self.height = width, height
        Box.made += 1

    @property
    def area(self):
        return self.width * self.height

    @area.setter
    def area(self, value):
        self.width = value / self.height

    @functools.cached_property
    def diagonal(self):
        return (self.width**2 + self.height**2) ** 0.5

    @classmethod
    def square(cls, side):
        return cls(side, side)

    @staticmethod
    def unit():
        return Box(1, 1)

    def times(self, factor):
        return self.area * factor

    doubled = functools.partialmethod(times, 2)

    class Lid:
        material = "wood"

        class Handle:
            def __init__(self, size):
                self.size = size


class Connection:
    """Keeps what cannot be pickled out of its pickle."""

    def __init__(self, host):
        self.host = host
        self.socket = open(os.devnull)

    def __getstate__(self):
        return {"host": self.host}

    def __setstate__(self, state):
        self.__init__(state["host"] + "+")


class Interned:
    known = weakref.WeakValueDictionary()

    def __new__(cls, name):
        found = cls.known.get(name)
        if found is None:
            found = cls.known[name] = super().__new__(cls)
            found.name = name
        return found

    def __reduce__(self):
        return Interned, (self.name,)


def named_after(cls):
    """A class decorator that puts another class in the place of its own."""

    class Wrapped(cls):
        def run(self):
            return "wrapped " + super().run()

    return functools.update_wrapper(Wrapped, cls, updated=())


@named_after
class Task:
    def run(self):
        return "task"


@functools.total_ordering
class Version:
    def __init__(self, number):
        self.number = number

    def __eq__(self, other):
        return self.number == other.number

    def __lt__(self, other):
        return self.number < other.number


class Singleton:
    instance = None

    def __new__(cls):
        if cls.instance is None:
            cls.instance = super().__new__(cls)
            cls.instance.values = []
        return cls.instance


class Vector(list):
    def dot(self, other):
        return sum(a * b for a, b in zip(self, other, strict=True))


class Node:
    def __init__(self, name):
        self.name, self.parent, self.children = name, None, []

    def add(self, child):
        child.parent = self
        self.children.append(child)
        return self


class Config:
    level = 1
    names = ("a",)


class Model:
    weights = None

    def __init__(self, rate):
        self.rate = rate
        self.steps = []

    def train(self, n):
        for step in range(n):
            self.steps.append(step * self.rate)
        return self

    def __eq__(self, other):
        return type(other) is Model and vars(self) == vars(other)

    def __hash__(self):
        return hash(self.rate)


class Callable:
    def __init__(self, n):
        self.n = n

    def __call__(self, x):
        return x * self.n

    def __getattr__(self, name):
        if name.startswith("get_"):
            return functools.partial(getattr, self, name[4:])
        raise AttributeError(name)


kinds = {
    "Color": Color,
    "Access": Access,
    "Level": Level,
    "Planet": Planet,
    "Sample": Sample,
    "Point": Point,
    "Reading": Reading,
    "Options": Options,
    "Runs": Runs,
    "Shape": Shape,
    "Square": Square,
    "Odd": Odd,
    "Cube": Cube,
    "Stack": Stack,
    "Plugins": Plugins,
    "Plugin": Plugin,
    "Upper": Upper,
    "Lower": Lower,
    "JsonHandler": JsonHandler,
    "CsvHandler": CsvHandler,
    "Positive": Positive,
    "Box": Box,
    "Node": Node,
    "Task": Task,
    "Callable": Callable,
    "Pair": Pair,
    "T": T,
    "Seconds": Seconds,
}
root = Node("root").add(Node("left")).add(Node("right"))
leaf = root.children[0]
favourite = Color.GREEN


def identity(x):
    return x


def make(name, *args):
    return kinds[name](*args)


def class_named(name):
    return kinds[name]


def is_red(color):
    return color is Color.RED, color.other is Color.GREEN, {Color.RED: "yes"}.get(color)


def is_favourite(color):
    return color is favourite


def instance_of(x):
    return [name for name in ("Shape", "Odd", "Square", "Cube", "Runs") if isinstance(x, kinds[name])]


def hashed(color):
    return {Color.RED: 1, Color.GREEN: 2}[color]


def function_given():
    return hashed


def next_sample(value):
    sample = Sample(value)
    return os.getpid(), sample.number, Sample(1).tags is Sample(1).tags


def handled(key, text):
    return Handlers.known[key]().handle(text)


def plugins():
    return sorted(Plugins.found), len(Plugin), Upper()("a") + Lower()("B")


def names_of_descriptors():
    return Positive.names, Box.__dict__["width"].name


def local_class():
    class Local(Shape):
        def area(self):
            return 5

    return Local().area(), isinstance(Local(), Shape)


def made_there():
    class There:
        x = 3

        def twice(self):
            return 2 * self.x

    return There()


def use_singleton(x):
    Singleton().values.append(x)
    return os.getpid(), len(Singleton().values)


def hierarchy():
    return leaf.parent is root, root.children[0] is leaf


def set_config(level):
    Config.level = level
    return Config.level


def get_config():
    return Config.level, Config.names


def set_weights(weights):
    Model.weights = weights


def get_weights():
    return Model.weights


def interned(name):
    there = Interned(name)
    return Interned(name) is there, Interned.known[name] is there


def hints():
    return {name: str(hint) for name, hint in typing.get_type_hints(Sample).items()}, typing.get_type_hints(Point.__add__)[
        "other"
    ] is Point


def patched(x):
    return Callable(3)(x)


def attempt(name, found, wanted=True):
    try:
        value = found()
        ok = wanted(value) if callable(wanted) else value == wanted
        said = f"found {value!r}"
    except BaseException as error:
        ok, said = False, f"found {type(error).__name__}: {error}"
    print(f"{name}: {'ok' if ok else 'WRONG, ' + said[:300]}", flush=True)


def last_numbers_add_up_to(wanted, rows):
    last = {}
    for pid, number in rows:
        last[pid] = max(number, last.get(pid, 0))
    return sum(last.values()) == wanted


def main():
    Config.level = 5
    Callable.__call__ = lambda self, x: (self.n, x, "patched")
    with Executor(2) as ex:

        def run(function, *args):
            return ex.submit(function, *args).result(60)

        attempt("an enum member is the same in a call", lambda: run(is_red, Color.RED), (True, True, "yes"))
        attempt(
            "an enum member comes back as itself",
            lambda: [run(identity, c) is c for c in (*Color, *Access, *Level, *Planet)],
            [True] * 8,
        )
        attempt("a combination of flags", lambda: run(identity, Access.READ | Access.WRITE), Access.READ | Access.WRITE)
        attempt("an enum member that a call looks up", lambda: run(make, "Planet", ("moon", 1.62)) is Planet.MOON)
        attempt("an enum member as a global", lambda: [run(is_favourite, c) for c in Color], [False, True])
        attempt("an enum member as a key", lambda: list(ex.map(hashed, [*Color] * 5)), [1, 2] * 5)
        attempt("a class comes back as itself", lambda: [name for name in kinds if run(class_named, name) is not kinds[name]], [])
        attempt(
            "a nested class comes back as itself",
            lambda: (
                run(identity, Box.Lid.Handle) is Box.Lid.Handle,
                type(run(identity, Box.Lid.Handle(2))) is Box.Lid.Handle,
                run(getattr, Box.Lid, "material"),
            ),
            (True, True, "wood"),
        )
        attempt(
            "a function comes back as itself",
            lambda: (run(identity, identity) is identity, run(identity, Box.unit) is Box.unit, run(function_given) is hashed),
            (True, True, True),
        )
        attempt("a bound classmethod comes back", lambda: run(identity, Box.square).__self__ is Box)
        attempt(
            "a dataclass",
            lambda: (
                run(Sample(3.0, ["a"], 5).scaled),
                run(identity, Sample(3.0, ["a"], 5)),
                type(run(make, "Sample", 1, [], 2)) is Sample,
            ),
            (6.0, Sample(3.0, ["a"], 5), True),
        )
        attempt(
            "a default_factory that counts",
            lambda: [run(next_sample, 1) for _ in range(8)],
            lambda rows: not any(same for *_, same in rows) and {n % 3 for _, n, _ in rows} == {1},
        )
        attempt(
            "a frozen dataclass with slots",
            lambda: (
                run(Point(1, 2).__add__, Point(3, 4)),
                run(sorted, [Point(2), Point(1)]),
                len({run(identity, Point(1)), Point(1)}),
            ),
            (Point(4, 6), [Point(1), Point(2)], 1),
        )
        attempt(
            "a frozen dataclass stays frozen", lambda: isinstance(run(setattr_error, Point(1)), dataclasses.FrozenInstanceError)
        )
        attempt(
            "a NamedTuple",
            lambda: (
                run(Reading(1.0).kelvin),
                type(run(make, "Reading", 2.0)) is Reading,
                run(identity, Reading(1.0))._replace(time=3.0),
            ),
            (293.15, True, Reading(3.0)),
        )
        attempt("a namedtuple", lambda: (type(run(make, "Pair", 1, 2)) is Pair, run(identity, Pair(1, 2))), (True, Pair(1, 2)))
        attempt("a TypedDict", lambda: run(options, Options(depth=3)), {"depth": 4, "name": "set"})
        attempt("a Protocol", lambda: run(instance_of, Cube(1)), ["Shape", "Square", "Cube", "Runs"])
        attempt("an abstract class with a registered one", lambda: run(instance_of, Odd()), ["Shape", "Odd"])
        attempt(
            "an abstract class cannot be made",
            lambda: run(error_of, "Shape"),
            lambda e: type(e) is TypeError and "abstract" in str(e),
        )
        attempt(
            "super() in methods",
            lambda: (
                run(Cube(2).area),
                list(ex.map(Cube.area, [Cube(1), Cube(2)])),
                [s.area() for s in run(sorted, [Cube(2), Square(3), Cube(1)])],
            ),
            (24, [6, 24], [6, 9, 24]),
        )
        attempt("slots and a dict", lambda: vars(run(with_label, Square(2))), {"label": "side 2"})
        attempt(
            "a generic class",
            lambda: (
                run(Stack[int]().push, 3).items,
                type(run(identity, Stack[str]())) is Stack,
                run(identity, Stack[int]) == Stack[int],
            ),
            ([3], True, True),
        )
        attempt(
            "a metaclass that registers",
            lambda: (run(plugins), type(run(identity, Upper())) is Upper, sorted(Plugins.found)),
            ((["Lower", "Upper"], 2, "Ab"), True, ["Lower", "Upper"]),
        )
        attempt(
            "__init_subclass__ with arguments",
            lambda: (
                run(handled, "csv", "x"),
                run(handled, "json", "y"),
                type(run(make, "CsvHandler")) is CsvHandler,
                sorted(Handlers.known),
            ),
            ("csv:x", "json:y", True, ["csv", "json"]),
        )
        attempt(
            "a descriptor with __set_name__",
            lambda: (run(names_of_descriptors), isinstance(run(error_of, "Box", 1, -1), ValueError)),
            ((["width", "height"], "_width"), True),
        )
        attempt("a property and its setter", lambda: run(set_area, Box(1, 2), 10).width, 5.0)
        attempt(
            "a cached_property",
            lambda: (run(getattr, Box(3, 4), "diagonal"), run(with_diagonal, Box(6, 8)).__dict__["diagonal"]),
            (5.0, 10.0),
        )
        attempt(
            "class and static methods",
            lambda: (run(Box.square, 3).area, run(Box.unit).area, Box.made),
            lambda found: found[:2] == (9, 1),
        )
        attempt("a partialmethod", lambda: run(operator.methodcaller("doubled"), Box(2, 3)), 12)
        attempt(
            "instances count what the worker has made",
            lambda: (Box.made, run(Box.square, 1).area, Box.made),
            lambda found: found[0] == found[2],
        )
        attempt("a local class in a call", lambda: run(local_class), (5, True))
        attempt("an instance of a class that only the worker has", lambda: PPE or run(made_there).twice() == 6)
        attempt("__getstate__ and __setstate__", lambda: run(identity, Connection("h")).host, "h++")
        attempt(
            "__reduce__ to the one that is known",
            lambda: (run(identity, kept) is kept, run(interned, "other")),
            (True, (True, True)),
        )
        attempt(
            "a singleton of each worker",
            lambda: (last_numbers_add_up_to(8, [run(use_singleton, i) for i in range(8)]), Singleton.instance),
            (True, None),
        )
        attempt(
            "a decorated class",
            lambda: (run(Task().run), type(run(identity, Task())) is Task, run(make, "Task").run()),
            ("wrapped task", True, "wrapped task"),
        )
        attempt(
            "total_ordering",
            lambda: (run(max, [Version(1), Version(3)]).number, run(operator.ge, Version(2), Version(2))),
            (3, True),
        )
        attempt(
            "a subclass of list", lambda: (run(Vector([1, 2]).dot, [3, 4]), type(run(identity, Vector([1]))) is Vector), (11, True)
        )
        attempt("a tree of nodes as global, with cycles", lambda: run(hierarchy), (True, True))
        attempt(
            "a tree of nodes as argument, with cycles",
            lambda: [n.name for n in run(identity, root).children[1].parent.children],
            ["left", "right"],
        )
        attempt("a class attribute set in main() before the first call", lambda: run(get_config), (5, ("a",)))
        attempt(
            "a method replaced in main() before the first call",
            lambda: (run(patched, 1), run(Callable(2), 7)),
            ((3, 1, "patched"), (2, 7, "patched")),
        )
        attempt(
            "a model is trained there",
            lambda: (run(Model(2).train, 3), run(Model(2).train, 3) == Model(2).train(3), len({run(identity, Model(2)), Model(2)})),
            (Model(2).train(3), True, 1),
        )
        attempt("typing.get_type_hints", lambda: run(hints) == hints())
        attempt("NewType and a Union", lambda: (run(identity, Seconds) is Seconds, run(identity, Number) == Number), (True, True))
        attempt("classes are left alone by results", lambda: left_alone(ex), (True, True, "here", {"left": True}))
        attempt(
            "results are computed with",
            lambda: functools.reduce(lambda a, b: a + b, ex.map(Point, range(5), range(5))),
            Point(10, 10),
        )
    with Executor(1) as ex:
        ex.submit(set_weights, [1, 2]).result(60)
        attempt(
            "a class attribute that a call sets stays there",
            lambda: (ex.submit(get_weights).result(60), Model.weights),
            ([1, 2], None),
        )
        ex.submit(set_config, 9).result(60)
        attempt(
            "a class attribute that a call has changed stays so",
            lambda: (ex.submit(get_config).result(60)[0], Config.level),
            (9, 5),
        )
    Config.level = 6
    with Executor(1) as ex:
        attempt("another executor has the class attribute of now", lambda: ex.submit(get_config).result(60)[0], 6)
        Config.level = 7
        attempt("a class attribute that is set again, later", lambda: PPE or ex.submit(get_config).result(60)[0] == 7)


def options(given: Options) -> Options:
    return Options(depth=given["depth"] + 1, name="set")


def setattr_error(point):
    try:
        point.x = 3
    except Exception as error:
        return error


def error_of(name, *args):
    try:
        kinds[name](*args)
    except Exception as error:
        return error


def with_label(square):
    square.label = f"side {square.side}"
    return square


def set_area(box, value):
    box.area = value
    return box


def with_diagonal(box):
    box.diagonal
    return box


def left_alone(ex):
    before = dict(vars(Model))
    future = ex.submit(Model(1).train, 2)
    Model.weights = "here"
    Model.left = True
    result = future.result(60)
    found = type(result) is Model, Model.train is before["train"], Model.weights, {"left": result.left}
    Model.weights = None
    del Model.left
    return found


kept = Interned("kept")

if __name__ == "__main__":
    main()
