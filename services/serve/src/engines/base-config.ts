/** A base's config.json, as far as an engine's settings depend on it: fields of transformers' configurations, under all their names. */
import { z } from "zod";

const count = z.number().nullish();
const quantizationConfig = z.looseObject({ quant_method: z.string().nullish(), quant_algo: z.string().nullish() }).nullish();
const modelConfig = z.looseObject({
  architectures: z.array(z.string()).nullish(),
  model_type: z.string().nullish(),
  num_attention_heads: count,
  n_head: count,
  num_heads: count,
  n_head_kv: count,
  num_kv_heads: count,
  num_key_value_heads: count,
  multi_query_group_num: count,
  num_attention_groups: count,
  max_position_embeddings: count,
  n_positions: count,
  max_seq_len: count,
  seq_length: count,
  model_max_length: count,
  max_sequence_length: count,
  max_seq_length: count,
  seq_len: count,
  rope_scaling: z.unknown().optional(),
  rope_parameters: z.unknown().optional(),
  quantization_config: quantizationConfig,
  compression_config: quantizationConfig,
});
export const baseConfig = modelConfig.extend({
  text_config: modelConfig.nullish(),
  vision_config: z.unknown().optional(),
  audio_config: z.unknown().optional(),
});
export type BaseConfig = z.infer<typeof baseConfig>;
