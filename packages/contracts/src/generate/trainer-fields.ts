/**
 * Pure: what the trainer knows of the sections `lora` and `training`, as data: `spec_fields.json`, which its `spec.py` reads. A directory
 * is the trainer's whole interface and anybody may fill one, so it checks what the run spec's schema has checked already.
 */
import { z } from "zod";
import type { JudgedFields } from "../spec/judged-fields.ts";
import { type MethodType, methodTypes } from "../spec/method.ts";
import { judgedLoraFields, loraFieldErrors, loraFields, ownLoraDefaults } from "../spec/lora-fields.ts";
import {
  judgedTrainingFields,
  ownTrainingDefaults,
  ownTrainingFields,
  schedules,
  trainingFieldErrors,
  trainingFields,
} from "../spec/training-fields.ts";

type Json = Record<string, unknown>;

/** The JSON Schemas of a section's fields; what they mean stands in docs/run-spec.md. */
function fieldsOf(section: z.ZodObject, errors: Readonly<Record<string, string>>): Record<string, Json> {
  const { properties } = z.toJSONSchema(section, { target: "draft-07", io: "input", reused: "inline" }) as {
    properties: Record<string, Json>;
  };
  return Object.fromEntries(
    Object.entries(properties).map(([name, { description: _dropped, ...schema }]) => [
      name,
      { ...schema, ...(errors[name] === undefined ? {} : { error: errors[name] }) },
    ]),
  );
}

interface TrainerSection {
  /** Field to its JSON Schema; `error`: what to say of a value that does not fit it. */
  fields: Record<string, Json>;
  /** Fields of the class that are none of ours. */
  judged: JudgedFields;
  /** Fields whose default is not the class's, and why. */
  ownDefaults: Readonly<Record<string, string>>;
  /** Fields that the class does not have, and where they come from. */
  ownFields: Readonly<Record<string, string>>;
}

interface TrainerFields {
  lora: TrainerSection;
  training: TrainerSection;
  schedules: typeof schedules;
  /** Types of `method` that the trainer must know. */
  methods: readonly MethodType[];
}

export const trainerFields = (): TrainerFields => ({
  lora: {
    fields: fieldsOf(loraFields, loraFieldErrors),
    judged: judgedLoraFields,
    ownDefaults: ownLoraDefaults,
    ownFields: {},
  },
  training: {
    fields: fieldsOf(trainingFields, trainingFieldErrors),
    judged: judgedTrainingFields,
    ownDefaults: ownTrainingDefaults,
    ownFields: ownTrainingFields,
  },
  schedules,
  methods: methodTypes,
});
