"""From an architecture to a compiled network that reads handwriting: `python examples/digits.py`.

Everything goes under out/digits/. Each step prints the `archc` command that does the same.
"""

from pathlib import Path

import torch

import archc

ARCH = Path(__file__).with_name("digits_resnet.arch")
OUT = Path("out/digits")
WEIGHTS, ARTIFACT = OUT / "digits.safetensors", OUT / "digits.archc"


def step(title: str, command: str) -> None:
    print(f"\n== {title}\n   $ archc {command}", flush=True)


OUT.mkdir(parents=True, exist_ok=True)

step("Check the program", f"check {ARCH}")
model = archc.load(ARCH)
print(f"{model.name}: {model.cost.params:,} parameters, {model.cost.flops} FLOPs, hash {model.hash[:12]}")

step("Draw it", f"show {ARCH} -o {OUT}/network.svg")
model.draw(OUT / "network.svg")

step("Train it", f"train {ARCH} --task digits --epochs 15 --threads 1 -o {WEIGHTS} --report {OUT}/report")
trained = archc.train(model, "digits", WEIGHTS, epochs=15, report=OUT / "report", threads=1, progress=True)
accuracy = trained.result.test.metrics["accuracy"]
print(f"accuracy on {trained.result.test.examples} digits never seen before: {accuracy:.1%}")

step("Compile it for this machine", f"compile {ARCH} --weights {WEIGHTS} -o {ARTIFACT}")
artifact = archc.compile(model, target="cpu", weights=trained.weights, out=ARTIFACT)
print(f"{ARTIFACT}: {ARTIFACT.stat().st_size:,} bytes; it runs without torch and without the compiler")

step("Verify it against torch in float64", f"verify {ARTIFACT} --weights {WEIGHTS}")
for output in archc.verify(artifact, trained.weights).outputs:
    print(
        f"{output.name}: error {output.error:.1e}, allowed {output.allowed:.1e}: {'ok' if output.ok else output.reason}"
    )

step("Read digits that were held out", f"run {ARTIFACT} --input digit.png --top-k 3")
test = trained.task.splits["test"]
(raw,), labels = test.batch(torch.arange(len(test)))
logits = artifact(trained.task.preprocessing.apply(raw.numpy()))
right = (logits.argmax(1) == labels.numpy()).sum()
for i in range(4):
    picture = ["".join(" .:*#"[int(v) // 4] * 2 for v in row) for row in raw[i, 0]]
    print("\n".join(picture), f"\n^ predicted {logits[i].argmax()}, is {labels[i]}")
print(f"the compiled network reads {right} of {len(test)} right")


class Compiled(torch.nn.Module):
    """The compiled network where a torch module is expected."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return artifact(x)


archc.gallery(Compiled(), trained.task, OUT / "predictions.png")
print(f"pictures with their predictions: {OUT}/predictions.png")

step("How fast is it?", f"bench {ARCH} --weights {WEIGHTS} --against torch --threads 1")
for timing in archc.bench(model, ["torch"], weights=trained.weights, threads=1).timings:
    told = f"{timing.median_ms:.3f} ms" + (f", {timing.ratio:.1f} times" if timing.ratio else "")
    print(f"{timing.runner:6} {timing.failure or told}")

step("Compile it for NVIDIA GPUs", f"compile {ARCH} --weights {WEIGHTS} --target cuda -o {OUT}/digits.cuda.archc")
try:
    manifest = archc.build(model, OUT / "digits.cuda.archc", "cuda", trained.weights)
    print(f"{OUT}/digits.cuda.archc: machine code for {manifest.target}")
except archc.CompileError as error:
    print(*(f"{d.message}: {d.help}" for d in error.diagnostics), sep="\n")
