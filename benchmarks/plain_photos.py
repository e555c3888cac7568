"""A small ResNet on a folder of photos as a plain loop trains it, to compare recipes with.

Torchvision's ImageFolder and transforms, a DataLoader, float32, SGD with momentum and a cosine:
what its reference script comes to without its options. The network has four stages of 16 to 128
channels. Prints the validation accuracy after the last epoch and the seconds of the training.

    python benchmarks/plain_photos.py data/photos
    python benchmarks/plain_photos.py data/photos --epochs=30 --size=96 --seed=1
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from training import yours

NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def loaders(root: str, size: int, batch_size: int) -> tuple[DataLoader, DataLoader]:
    """Training and validation batches."""
    train = transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            NORMALIZE,
        ]
    )
    val = transforms.Compose(
        [
            transforms.Resize(size * 8 // 7),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            NORMALIZE,
        ]
    )
    workers = {"num_workers": 2, "persistent_workers": True}
    return (
        DataLoader(ImageFolder(f"{root}/train", train), batch_size, shuffle=True, **workers),
        DataLoader(ImageFolder(f"{root}/val", val), batch_size, **workers),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="folder with train/CLASS and val/CLASS")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--size", type=int, default=96, help="of the pictures, in pixels")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    train, val = loaders(args.root, args.size, args.batch_size)
    net = yours.NarrowResNet(
        (2, 2, 2, 2), 16, small_stem=True, num_classes=len(train.dataset.classes)
    )
    optimizer = torch.optim.SGD(net.parameters(), args.lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    start = time.monotonic()
    for epoch in range(args.epochs):
        net.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
        schedule.step()
        if epoch == 0:
            print(f"first epoch {time.monotonic() - start:.1f} s", flush=True)
    seconds = time.monotonic() - start
    net.eval()
    with torch.no_grad():
        right = sum((net(x).argmax(1) == y).sum().item() for x, y in val)
    accuracy = right / len(val.dataset)
    print(f"{args.epochs} epochs in {seconds:.1f} s of training, val/acc {accuracy:.4f}")


if __name__ == "__main__":
    main()
