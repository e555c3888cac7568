# docker build -t anneal .
# docker run --rm --gpus=all --shm-size=8g -v "$PWD/runs:/anneal/runs" -v "$PWD/data:/anneal/data" \
#   anneal --config=configs/photos_resnet18.yaml
#
# torch as installed by default on Linux (x86) brings CUDA, and runs without a GPU too: leave out
# --gpus. An image without CUDA is smaller by gigabytes, another CUDA may suit an older driver:
# --build-arg TORCH_INDEX=URL with the address that pytorch.org's "Start Locally" gives for it.
FROM python:3.13-slim

# torch.compile builds its kernels with it.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /anneal
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.6" "torchvision>=0.21"
COPY . .
RUN pip install --no-cache-dir -e ".[stream]"

ENTRYPOINT ["python", "train.py"]
