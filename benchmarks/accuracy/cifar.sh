#!/bin/sh
# The paper's runs: ResNet-1001 and its parareal networks on CIFAR-10 and CIFAR-100, 200 epochs each, and the same
# network with the coarse blocks that "auto" chooses.
#
#   sh benchmarks/accuracy/cifar.sh DATA_DIR OUT [flags of `pararealize train` that serial and parareal runs take; they win over those below]
#
# DATA_DIR holds torchvision's files (cifar-10-batches-py, cifar-100-python). Every run has a folder of its own in OUT;
# what was finished is left, what was stopped goes on from its last checkpoint. On a GPU, add for instance
# --devices cuda:0 --amp auto. Other networks, data sets, N and seeds by the environment:
#
#   MODEL=resnet110 DATA="cifar10" NUMBERS="3 6" SEEDS="0 1 2 3 4" sh benchmarks/accuracy/cifar.sh data runs
set -eu
[ $# -ge 2 ] || { echo "usage: sh $0 DATA_DIR OUT [flags of pararealize train]" >&2; exit 2; }
data_dir=$1 out=$2
shift 2
: "${PARAREALIZE:=pararealize}" "${MODEL:=resnet1001}" "${DATA:=cifar10 cifar100}" "${NUMBERS:=3 6 12 18}" "${SEEDS:=0}"

# one run: its folder's name, then its own flags, then those of the command line
run() {
    folder=$out/$1
    shift
    [ -e "$folder/weights.safetensors" ] && { echo "$folder is finished" >&2; return; }
    [ -d "$folder" ] && set -- "$@" --resume
    $PARAREALIZE train "$MODEL" --data "$data" --data-dir "$data_dir" --augment --out "$folder" --seed "$seed" \
        --epochs 200 --batch-size 128 --optimizer sgd --lr 0.1 --momentum 0.9 --weight-decay 5e-4 \
        --schedule steps --milestones 80,120 --gamma 0.1 --initialise he "$@"
}

mkdir -p "$out"
for seed in $SEEDS; do
    for data in $DATA; do
        run "$MODEL-original-$data-$seed" --method serial "$@"
        for n in $NUMBERS; do
            run "$MODEL-n$n-paper-$data-$seed" --n "$n" --coarse paper --cuts paper --source input "$@"
            run "$MODEL-n$n-auto-$data-$seed" --n "$n" --coarse auto --cuts cost "$@"
        done
    done
done
