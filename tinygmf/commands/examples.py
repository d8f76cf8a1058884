"""The examples that the help of each command ends with."""

EXAMPLES = {
    "demo": ("",),
    "classify": ("photo.jpg --weights digits", "photos --weights runs/photos --csv"),
    "segment": ("photos --weights runs/scenes",),
    "detect": ("photos --weights runs/scenes --out found",),
    "explain": ("photo.jpg --weights digits --query 120,80",),
    "explore": ("--weights runs/photos",),
    "train": (
        "photos",
        "photos --weights runs/photos/best.safetensors --epochs 10",
        "--resume runs/photos --epochs 40",
    ),
    "ablate": ("--seeds 1 --epochs 2", "published tokens --data scenes-segment --epochs 1"),
    "evaluate": ("photos/val --weights runs/photos --out figures",),
    "tune": ("--weights runs/photos",),
    "info": ("tiny", "runs/photos/model.safetensors"),
    "verify": ("--weights digits",),
    "convert": ("runs/photos photos.pth",),
    "export": ("digits --to c --out digits_in_c",),
    "devices": ("--test",),
    "cache": ("--clear",),
    "completion": ("bash",),
}


def ending(command: str) -> str:
    """The end of a command's help: its examples, one per line."""
    lines = [f"  tinygmf {command} {words}".rstrip() for words in EXAMPLES[command]]
    return "\n".join([f"example{'s' if len(lines) > 1 else ''}:", *lines])
