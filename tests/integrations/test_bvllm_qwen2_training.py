"""Training: gradients, checkpointing, LoRA and the Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

TEXTS = [
    "<|im_start|>user\n<video>what does he throw?<|im_end|>\n<|im_start|>assistant\na ball",
    "<|im_start|>user\nhow are you?<|im_end|>\n<|im_start|>assistant\nvery well, thank you",
]


def example(processor: Any, noise: Any) -> Any:
    inputs = processor(text=TEXTS, videos=[noise["long"]])
    labels = inputs["input_ids"].clone()
    labels[:, :12] = -100
    inputs["labels"] = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    return inputs


def step(model: Any, inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """The loss, and the gradient of each parameter that wants one."""
    loss = model(**inputs, generator=torch.Generator().manual_seed(0)).loss
    model.zero_grad()
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def test_gradients_reach_everything_but_the_tower(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    model.train()
    loss, gradients = step(model, example(processor, noise))
    assert torch.isfinite(loss)
    without = {
        name for name, gradient in gradients.items() if gradient is None or not bool(gradient.any())
    }
    # Adding the same to all scores of a choice changes nothing, so the projection's bias has a
    # gradient that may vanish; nothing else has.
    assert without <= {"balanced_tokenizer.frame_selector.projection.bias"}
    assert not any(name.startswith("vision_tower.") for name in gradients)
    assert all(parameter.grad is None for parameter in model.vision_tower.parameters())


def test_straight_through_choices_reach_the_selector_too(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    model.train()
    model.balanced_tokenizer.frame_selector.straight_through = True
    _, gradients = step(model, example(processor, noise))
    gradient = gradients["balanced_tokenizer.frame_selector.queries"]
    assert gradient is not None
    assert bool(gradient.any())


# transformers 5.23 renames the method; users of either name are served.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_nothing(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    model.train()
    inputs = example(processor, noise)
    loss, gradients = step(model, inputs)
    model.gradient_checkpointing_enable()
    layers = model.language_model.model.layers
    assert all(layer.gradient_checkpointing for layer in layers)
    again, recomputed = step(model, inputs)
    torch.testing.assert_close(again, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_steps_lower_the_loss(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    model.train()
    model.language_model.requires_grad_(False)
    inputs = example(processor, noise)
    optimizer = torch.optim.AdamW(model.balanced_tokenizer.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = model(**inputs, generator=torch.Generator().manual_seed(0)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5


# peft 0.21 asks by the name that transformers 5.23 renames, and 0.20 for a base model in a folder.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")
def test_lora_on_the_language_model(tiny_qwen2: Any, noise: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    import bvllm_adapters as bvllm

    model, processor = tiny_qwen2
    inputs = example(processor, noise)
    prompt = {name: value for name, value in inputs.items() if name != "labels"}
    before = model(**prompt).logits
    tuned: Any = get_peft_model(
        model,
        LoraConfig(r=4, target_modules=r"language_model\..*\.(q_proj|v_proj|down_proj)"),
    )
    tuned.get_base_model().balanced_tokenizer.requires_grad_(True)
    assert torch.equal(tuned(**prompt).logits, before)
    tuned.train()
    _, gradients = step(tuned, inputs)
    kinds = {name.split(".")[2] for name in gradients}
    assert kinds == {"balanced_tokenizer", "language_model"}
    assert all(name.count("lora_") for name in gradients if ".language_model." in name)
    assert gradients["base_model.model.balanced_tokenizer.spatial_sampler.queries"] is not None

    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    tuned.eval()
    ids = tuned.generate(**prompt, max_new_tokens=4, do_sample=False)
    logits = tuned(**prompt).logits
    assert not torch.allclose(logits, before)
    tuned.save_pretrained(tmp_path)
    restored: Any = PeftModel.from_pretrained(tuned.unload(), tmp_path)
    assert torch.equal(restored.eval()(**prompt).logits, logits)
    again = restored.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert again.tolist() == ids.tolist()
    answer = bvllm.ask(restored, noise["long"], "what?", processor=processor, max_new_tokens=3)
    assert answer.trace.frames_decoded == 11


def test_the_trainer_takes_a_step(tiny_qwen2: Any, noise: Any, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model, processor = tiny_qwen2
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        max_steps=1,
        learning_rate=1e-2,
        warmup_steps=0,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=[0, 1],
        eval_dataset=[0, 1],
        data_collator=lambda _: dict(example(processor, noise)),
        processing_class=processor,
    )
    result = trainer.train()
    assert result.training_loss > 0
    changed = {
        name.split(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"balanced_tokenizer", "language_model"}
    assert trainer.evaluate()["eval_loss"] > 0
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file()
    assert (tmp_path / "checkpoint-1" / "processor_config.json").is_file()
