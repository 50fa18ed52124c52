import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import type { ConfigSchema } from '../contracts/config.ts';
import type { TransformationMethod } from './define.ts';
import { TransformationOptimizer } from './optimizer.ts';

/** A `tf.train.Optimizer` class made of a method; its instances can be written into model files. */
export type OptimizerClass<Options> = tf.serialization.SerializableConstructor<TransformationOptimizer> &
  (new (
    options?: Options,
  ) => TransformationOptimizer);

/**
 * The optimizer class of a method, registered with tfjs, so that `model.save(…, { includeOptimizer: true })` and
 * `tf.loadLayersModel` know it. `new Class(options)` is `method(options).optimizer()`. Options that are functions are not
 * written.
 */
export function defineOptimizerClass<Schema extends ConfigSchema, State>(
  className: string,
  method: TransformationMethod<Schema, State>,
): OptimizerClass<z.input<Schema>> {
  class MethodOptimizer extends TransformationOptimizer {
    /** @nocollapse */
    static override get className(): string {
      return className;
    }

    private readonly options: Record<string, unknown>;

    constructor(options?: z.input<Schema>) {
      const transformation = method(options);
      super(transformation);
      this.options = transformation.config as Record<string, unknown>;
    }

    override getConfig(): tf.serialization.ConfigDict {
      const plain = Object.entries(this.options).filter(([, value]) => typeof value !== 'function');
      return { ...Object.fromEntries(plain), learningRate: this.learningRate } as tf.serialization.ConfigDict;
    }

    /** @nocollapse */
    static override fromConfig<T extends tf.serialization.Serializable>(
      cls: tf.serialization.SerializableConstructor<T>,
      { customObjects: _, ...config }: tf.serialization.ConfigDict,
    ): T {
      return new cls(respell(method.config, config));
    }
  }
  Object.defineProperty(MethodOptimizer, 'name', { value: className });
  tf.serialization.registerClass(MethodOptimizer as never);
  return MethodOptimizer as unknown as OptimizerClass<z.input<Schema>>;
}

/** Undoes what tfjs does to texts on their way through a model file: `reverse_std` comes back as `reverseStd`. */
function respell(schema: ConfigSchema, config: Record<string, unknown>): Record<string, unknown> {
  const { properties = {} } = z.toJSONSchema(schema, { unrepresentable: 'any', io: 'input' });
  return Object.fromEntries(
    Object.entries(config).map(([option, value]) => {
      const accepted = (properties[option] as { enum?: unknown[] } | undefined)?.enum ?? [];
      const meant = accepted.find((each) => typeof each === 'string' && camelCase(each) === value);
      return [option, accepted.includes(value) ? value : (meant ?? value)];
    }),
  );
}

function camelCase(text: string): string {
  return text.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
}
