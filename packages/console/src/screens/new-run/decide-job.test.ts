import { createJobBody, parseRunSpec } from "@loraline/contracts";
import { expect, test } from "vitest";
import { codeOf, jobOf, keptOf, methodsFor, nameAfter, namesOf, problemsOf, type Wish } from "./decide-job.ts";

const wish: Wish = {
  base: "smollm2",
  adapter: "pirate",
  method: "supervised",
  epochs: "",
  learningRate: "",
  rank: "",
  maxSteps: "",
  promote: "auto",
};

test("what was left empty is left to the server, and what was typed is a number", () => {
  expect(jobOf(wish, "01J")).toEqual({ model: "smollm2", training_file: "file-01J", loraline: { adapter: "pirate" } });
  const job = jobOf({ ...wish, method: "dpo", epochs: "2", rank: "16", learningRate: "1e-5", promote: "canary" }, "01J");
  expect(job).toEqual({
    model: "smollm2",
    training_file: "file-01J",
    method: { type: "dpo" },
    loraline: {
      adapter: "pirate",
      lora: { r: 16, lora_alpha: 32 },
      training: { num_train_epochs: 2, learning_rate: 0.00001 },
      promote: "canary",
    },
  });
  expect(createJobBody.safeParse(job).success).toBe(true);
});

test("a file's name makes an adapter's", () => {
  expect(["My Pirates.v2.csv", "Über.jsonl.gz", "海盗.txt", "/data/x.JSONL"].map(nameAfter)).toEqual(["my-pirates-v2", "uber", "", "x"]);
});

test("records decide which methods there are", () => {
  expect(methodsFor({ kinds: { chat: 3 } })).toEqual(["supervised"]);
  expect(methodsFor({ kinds: { preference: 3 } })[0]).toBe("dpo");
  expect(methodsFor({ kinds: { unpaired: 3 } })).toEqual(["kto"]);
});

test("wrong fields are named, each with its fault", () => {
  expect(problemsOf(wish)).toEqual({});
  expect(problemsOf({ ...wish, base: "", adapter: "A b", epochs: "0", rank: "x" })).toEqual({
    base: "required",
    adapter: "badName",
    epochs: "badNumber",
    rank: "badNumber",
  });
});

test("the same as code", () => {
  const blocks = Object.fromEntries(codeOf({ ...wish, rank: "4" }, "01J", "pirate.csv", "http://x").map(({ name, text }) => [name, text]));
  expect(blocks["loraline"]).toBe(
    '# run.yaml\nlora:\n  r: 4\n  lora_alpha: 8\n\nloraline run "pirate.csv" --base smollm2 --name pirate -f run.yaml',
  );
  expect(blocks["kubectl"]).toContain(
    "spec:\n  base: smollm2\n  adapter: pirate\n  lora:\n    r: 4\n    lora_alpha: 8\n  dataset:\n    id: 01J\n",
  );
  expect(blocks["Python"]).toContain('extra_body={"loraline": {"adapter":"pirate","lora":{"r":4,"lora_alpha":8}}}');
  expect(JSON.parse(/-d '(.*)'$/s.exec(blocks["curl"] ?? "")?.[1] ?? "")).toEqual(jobOf({ ...wish, rank: "4" }, "01J"));
});

test("run again, what the form does not ask is asked for again, and only that", () => {
  const asked = {
    base: "smollm2",
    adapter: "pirate",
    dataset: "01M8KJT9G0PKNXTV18JTHQ6VM9",
    validation: "01M8KJT9G0PKNXTV18JTHQ6VM8",
    method: { type: "dpo", beta: 0.3 },
    lora: { r: 4, lora_alpha: 4, target_modules: ["q_proj"] },
    training: { max_steps: 5, learning_rate: 0.002, warmup_steps: 2 },
    gate: "none",
    promote: "canary",
    canary: { steps: [10] },
  };
  const parsed = parseRunSpec(asked);
  if (!("spec" in parsed)) throw new Error(JSON.stringify(parsed.problems));
  const kept = keptOf(parsed.spec);
  const names = namesOf(kept.fields).toSorted();
  expect(names).toContain("canary.steps");
  expect(names.filter((name) => !name.startsWith("canary."))).toEqual([
    "gate",
    "lora.lora_alpha",
    "lora.target_modules",
    "method.beta",
    "training.warmup_steps",
    "validation",
  ]);
  const same: Wish = { ...wish, method: "dpo", epochs: "3", learningRate: "0.002", rank: "4", maxSteps: "5", promote: "canary" };
  const job = jobOf(same, asked.dataset, kept);
  expect(job).toMatchObject({
    validation_file: `file-${asked.validation}`,
    method: { type: "dpo", dpo: { hyperparameters: { beta: 0.3 } } },
    loraline: {
      lora: { r: 4, lora_alpha: 4, target_modules: ["q_proj"] },
      training: { warmup_steps: 2 },
      gate: "none",
      canary: { steps: [10] },
    },
  });
  expect(createJobBody.safeParse(job).error).toBeUndefined();
  // Another rank has its own scaling, another method its own settings, and a promotion at once no canary.
  const other = jobOf({ ...same, method: "orpo", rank: "8", promote: "auto" }, asked.dataset, kept);
  expect(other.method).toEqual({ type: "orpo" });
  expect(other.loraline).toMatchObject({ lora: { r: 8, lora_alpha: 16 } });
  expect(other.loraline).not.toHaveProperty("canary");
  const yaml = codeOf(same, asked.dataset, "pirate.csv", "http://x", kept).find(({ name }) => name === "loraline")?.text ?? "";
  expect(yaml).toContain('target_modules: ["q_proj"]');
  expect(
    keptOf((parseRunSpec({ base: "smollm2", adapter: "pirate", dataset: asked.dataset }) as { spec: typeof parsed.spec }).spec).fields,
  ).toEqual({});
});
