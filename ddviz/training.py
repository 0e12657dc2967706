"""Training a base classifier with Gaussian noise (Cohen et al. 2019, arXiv 1902.02918, section 3.4).

The digits networks in the package are made by

    python -m ddviz.training --dataset digits --arch digits_cnn --sigma 0.25 --epochs 120 --out digits.safetensors
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm

from ddviz import datasets
from ddviz.networks import ARCHITECTURES, MEAN_STD, Normalize
from ddviz.records import explained_disk_errors


def train_gaussian(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    sigma: float,
    epochs: int,
    batch: int = 128,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    shift: int = 0,
    flip: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> None:
    """Train in place with fresh Gaussian noise on every image of every epoch; SGD with a one-cycle schedule.

    images: (N, C, H, W) in [0, 1], labels: (N,), on the network's device. shift: random crops after padding by so many
    pixels. flip: random mirror images.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay, nesterov=True)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.25)
    network.train()
    loss = torch.zeros(())
    with tqdm(total=steps, desc="training", unit="step", mininterval=5, file=sys.stdout) as progress:
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator, device=images.device)
            for chosen in order.split(batch)[: len(images) // batch]:
                x = _augmented(images[chosen], shift, flip, generator)
                noisy = x + sigma * torch.empty_like(x).normal_(generator=generator)
                with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
                    loss = cross_entropy(network(noisy), labels[chosen])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update()
            progress.set_postfix(loss=f"{loss.item():.3f}")
    network.eval()


def _augmented(x: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random crops (one offset a batch row) and mirror images."""
    size = x.shape[-1]
    if shift:
        padded = pad(x, (shift,) * 4)
        offsets = torch.randint(0, 2 * shift + 1, (2, len(x)), generator=generator, device=x.device)
        rows, columns = (offsets[axis, :, None] + torch.arange(size, device=x.device) for axis in (0, 1))
        batch = torch.arange(len(x), device=x.device)[:, None, None]
        x = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    if flip:
        mirrored = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
        x = torch.where(mirrored, x.flip(-1), x)
    return x


@torch.no_grad()
def noisy_accuracy(network: nn.Module, images: Tensor, labels: Tensor, *, sigma: float, seed: int = 0) -> float:
    """Share of images classified correctly under one sample of Gaussian noise each."""
    generator = torch.Generator(images.device).manual_seed(seed)
    noisy = images + sigma * torch.empty_like(images).normal_(generator=generator)
    hits = [network(x).argmax(1) == y for x, y in zip(noisy.split(500), labels.split(500), strict=True)]
    return torch.cat(hits).float().mean().item()


def save_weights(network: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights of a network (without its normalise layer) as safetensors with its recipe."""
    inner = network[1] if isinstance(network, nn.Sequential) and isinstance(network[0], Normalize) else network
    with explained_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous().cpu() for key, value in inner.state_dict().items()}, path, metadata)


def main() -> None:
    """Train one network from the command line and save it with its recipe."""
    parser = argparse.ArgumentParser(description="Train a base classifier with Gaussian noise.")
    parser.add_argument("--dataset", default="digits", choices=["digits", "cifar10"])
    parser.add_argument("--data-root", default="")
    parser.add_argument("--arch", default="digits_cnn", choices=sorted(ARCHITECTURES))
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    cuda = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sets = [datasets.load(args.dataset, split=split, data_root=args.data_root) for split in datasets.SPLITS]
    (images, labels), (test_images, test_labels) = (
        (s.images(s.indices).to(cuda), torch.tensor([s.labels[i] for i in s.indices], device=cuda)) for s in sets
    )
    torch.manual_seed(args.seed)
    network = ARCHITECTURES[args.arch](num_classes=len(sets[0].classes))
    if normalize := MEAN_STD.get(args.dataset):
        network = nn.Sequential(Normalize(*normalize), network)
    network.to(cuda)
    start = time.time()
    photos = args.dataset != "digits"
    train_gaussian(
        network,
        images,
        labels,
        sigma=args.sigma,
        epochs=args.epochs,
        batch=args.batch,
        lr=args.lr,
        shift=4 if photos else 1,
        flip=photos,
        dtype=getattr(torch, args.dtype),
        seed=args.seed,
    )
    accuracy = noisy_accuracy(network, test_images, test_labels, sigma=args.sigma)
    print(
        f"{accuracy:.1%} of {len(test_labels)} test images right under sigma {args.sigma:g}, "
        f"{time.time() - start:.0f} s"
    )
    recipe = {key: str(value) for key, value in vars(args).items() if key not in ("out", "data_root")}
    recipe |= {"normalize": args.dataset if normalize else "none", "noisy_accuracy": f"{accuracy:.4f}"}
    save_weights(network, args.out, recipe)


if __name__ == "__main__":
    main()
