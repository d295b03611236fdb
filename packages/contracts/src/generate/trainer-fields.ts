/**
 * Pure: makes `spec_fields.json`, which tells the trainer's `spec.py` about the fields of the sections `lora` and `training`. The trainer
 * checks them again although the run spec's schema has checked them, because anybody may write a directory for the trainer by hand.
 */
import { z } from "zod";
import type { JudgedFields } from "../spec/judged-fields.ts";
import { type MethodType, methodTypes, preferenceFields, type PreferenceType } from "../spec/method.ts";
import { judgedLoraFields, loraFieldErrors, loraFields, ownLoraDefaults } from "../spec/lora-fields.ts";
import { quantization } from "../spec/quantization.ts";
import {
  judgedTrainingFields,
  ownTrainingDefaults,
  ownTrainingFields,
  scheduleArguments,
  schedules,
  trainingFieldErrors,
  trainingFields,
} from "../spec/training-fields.ts";

type Json = Record<string, unknown>;

/** The JSON Schemas of a section's fields, without descriptions, which are in docs/run-spec.md. */
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
  /** Field to its JSON Schema; `error`: the message for a value that does not match. */
  fields: Record<string, Json>;
  /** Fields of the class that the section does not have. */
  judged: JudgedFields;
  /** Fields whose default differs from the class's, and why. */
  ownDefaults: Readonly<Record<string, string>>;
  /** Fields that the class does not have, and where they come from. */
  ownFields: Readonly<Record<string, string>>;
}

interface TrainerFields {
  lora: TrainerSection;
  training: TrainerSection;
  schedules: typeof schedules;
  /** Arguments of schedules, each with its JSON Schema. */
  scheduleArguments: Record<string, Json>;
  /** Types of `method` that the trainer must support. */
  methods: readonly MethodType[];
  /** Values of `quantization`. */
  quantizations: readonly string[];
  /** Fields of `method` beside its type, for the methods that have some. */
  methodFields: Record<PreferenceType, Record<string, Json>>;
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
  scheduleArguments: fieldsOf(scheduleArguments, {}),
  // A judge reaches the trainer as `supervised`: tokenize has made questions with one right answer of its pairs.
  methods: methodTypes.filter((type) => type !== "judge"),
  quantizations: quantization.options,
  methodFields: {
    dpo: fieldsOf(z.object(preferenceFields.dpo), {}),
    orpo: fieldsOf(z.object(preferenceFields.orpo), {}),
    simpo: fieldsOf(z.object(preferenceFields.simpo), {}),
    kto: fieldsOf(z.object(preferenceFields.kto), {}),
  },
});
