import { expect, it } from "vitest";
import { withFlags } from "./setting-flags.ts";

it("says the same as run.yaml would", () => {
  expect(withFlags({}, {})).toEqual({});
  expect(withFlags({}, { epochs: 3, learningRate: 1e-3, rank: 16, maxLength: 512 })).toEqual({
    training: { num_train_epochs: 3, learning_rate: 1e-3 },
    lora: { r: 16 },
    tokenize: { max_length: 512 },
  });
  expect(withFlags({}, { maxSteps: 20 })).toEqual({ training: { max_steps: 20 } });
});

it("counts more than run.yaml, and leaves its other settings", () => {
  const file = { lora: { r: 8, lora_alpha: 64 }, training: { max_steps: 5, seed: 7, max_seq_length: 100 }, holdout: 0.1 };
  expect(withFlags(file, { epochs: 2, rank: 4, maxLength: 256 })).toEqual({
    lora: { r: 4, lora_alpha: 64 },
    training: { num_train_epochs: 2, seed: 7 },
    tokenize: { max_length: 256 },
    holdout: 0.1,
  });
  expect(withFlags(file, { epochs: 2, maxSteps: 9 }).training).toMatchObject({ max_steps: 9, num_train_epochs: 2 });
});
