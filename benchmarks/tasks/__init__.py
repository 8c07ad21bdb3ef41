"""The tasks, each file a kind; a new task is one more `Task` in one more list."""

from benchmarks.task import Task
from benchmarks.tasks import (
    attack_batch,
    autoattack,
    curve,
    import_time,
    robust_accuracy,
    training,
)

TASKS: dict[str, Task] = {
    task.name: task
    for kind in (
        attack_batch,
        robust_accuracy,
        autoattack,
        curve,
        training,
        import_time,
    )
    for task in kind.TASKS
}
