// In the audio thread: both people's samples in step, 20 ms at a time. Input 0 is the avatar's, input 1 the user's.

declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}
declare function registerProcessor(name: string, processor: typeof AudioWorkletProcessor): void;

const BLOCK = 320; // samples, at 16 kHz

class Capture extends AudioWorkletProcessor {
  private tracks = [new Float32Array(BLOCK), new Float32Array(BLOCK)];
  private filled = 0;

  process(inputs: Float32Array[][]): boolean {
    const channels = inputs.map((input) => input[0]);
    // An input that nothing is connected to has no channels: it is silent.
    const length = channels.find((channel) => channel)?.length ?? 128;
    for (let i = 0; i < length; i++) {
      this.tracks.forEach((track, t) => (track[this.filled] = channels[t]?.[i] ?? 0));
      if (++this.filled === BLOCK) {
        this.port.postMessage(this.tracks.map((track) => track.slice()));
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);

export {};
