//! Properties of towers and files, mostly in f64 on the CPU.

use super::config::Preset;
use super::{MapHead, Queries, Shapes, Siglip, Sizes, TextTower, TokenIds, Tower, load};
use crate::checkpoint::{StateDict, siglip};
use crate::nn::pos_embed::{Resample, resample};
use crate::nn::{Builder, Module, Sequences};
use crate::ops::gelu::Form;
use crate::ops::l2_normalize::l2_normalize;
use crate::ops::sigmoid_pair_loss::{Block, sigmoid_pair_loss};
use crate::random::{normal, stream};
use crate::testing::devices;
use crate::{DType, Device, Error, Grads, Result, Tape, Tensor, Var};

fn sizes() -> Sizes {
    let tower = |width, depth, heads, hidden| Tower { width, depth, heads, hidden, gelu: Form::Tanh };
    Sizes {
        image_size: [11, 9], // 3 x 2 patches and a border
        patch_size: 3,
        in_chans: 2,
        vision: tower(12, 2, 3, 20),
        text: tower(8, 1, 2, 12),
        vocab_size: 13,
        context_len: 5,
        embed_dim: 12,
        vision_head: false,
        eps: 1e-6,
    }
}

fn builder(dtype: DType, device: &Device) -> Builder {
    Builder::new(device, dtype, 5)
}

fn double() -> Builder {
    builder(DType::F64, &Device::Cpu)
}

fn random(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_slice(&normal(&mut stream(seed, 1), shape.iter().product()), shape, &Device::Cpu).unwrap()
}

/// Values that no initialisation gives, so that no term is zero.
fn shaken<M: Module>(mut model: M) -> M {
    for (i, p) in model.params_mut().into_iter().enumerate() {
        let values = random(p.master.shape(), i as u64).to_f64().unwrap();
        let values: Vec<f64> = values.iter().zip(p.master.to_f64().unwrap()).map(|(r, old)| 0.2 * r + old).collect();
        p.set(&Tensor::from_slice(&values, p.master.shape().clone(), &Device::Cpu).unwrap()).unwrap();
    }
    model
}

const IDS: [i32; 10] = [3, 12, 4, 1, 1, 0, 3, 3, 7, 1];

fn ids(device: &Device) -> TokenIds {
    TokenIds::new(&IDS, 5, 13, device).unwrap()
}

fn images(count: usize) -> Tensor {
    random(&sizes().images(count), 77)
}

/// Loss and gradients of two pairs.
fn step(model: &Siglip, images: &Tensor, ids: &TokenIds) -> Result<(f64, Grads)> {
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let x = l2_normalize(&tape, &model.vision.forward(&tape, &Var::constant(images.clone()), None)?)?;
    let y = l2_normalize(&tape, &model.text.forward(&tape, ids)?)?;
    let (scale, bias) = (tape.param(&model.logit_scale), tape.param(&model.logit_bias));
    let (loss, _) = sigmoid_pair_loss(&tape, &x, &y, &scale, &bias, Block::whole(2))?;
    let value = loss.value().item()?;
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    grads.check_complete(model.params())?;
    Ok((value, grads))
}

/// Gradients in f64 against central differences, a few values of every parameter.
#[test]
fn gradients_match_finite_differences() {
    let mut model = shaken(Siglip::new(&double(), &sizes()).unwrap());
    let (images, ids) = (images(2), ids(&Device::Cpu));
    let (_, grads) = step(&model, &images, &ids).unwrap();
    let all: Vec<Vec<f64>> = model.params().iter().map(|p| grads.get(p).unwrap().to_f64().unwrap()).collect();
    for (which, grad) in all.iter().enumerate() {
        for at in [0, grad.len() / 2, grad.len() - 1] {
            let mut at_offset = |offset: f64| {
                let p = &mut model.params_mut()[which];
                let (shape, mut values) = (p.master.shape().clone(), p.master.to_f64().unwrap());
                values[at] += offset;
                p.set(&Tensor::from_slice(&values, shape, &Device::Cpu).unwrap()).unwrap();
                step(&model, &images, &ids).unwrap().0
            };
            let (up, down) = (at_offset(1e-5), at_offset(-2e-5));
            at_offset(1e-5);
            let numeric = (up - down) / 2e-5;
            let name = model.params()[which].name().to_string();
            assert!((numeric - grad[at]).abs() < 1e-6 * (1.0 + grad[at].abs()), "{name}[{at}]: {numeric} {}", grad[at]);
        }
    }
}

/// Softmax does not see what is added to all its logits: a key bias has no gradient.
#[test]
fn key_biases_have_no_gradient() {
    let model = shaken(Siglip::new(&double(), &sizes()).unwrap());
    let (_, grads) = step(&model, &images(2), &ids(&Device::Cpu)).unwrap();
    let mut checked = 0;
    for p in model.params() {
        let grad = grads.get(p).unwrap().to_f64().unwrap();
        let keys = match p.name() {
            n if n.ends_with("qkv_proj.bias") => grad.len() / 3..grad.len() / 3 * 2,
            n if n.ends_with("kv_proj.bias") => 0..grad.len() / 2,
            _ => continue,
        };
        assert!(grad[keys].iter().all(|g| g.abs() < 1e-12), "{}", p.name());
        checked += 1;
    }
    assert_eq!(checked, 4);
}

/// What is recomputed is what was computed, on every device, and in bf16 too.
#[test]
fn recomputation_changes_nothing() {
    for device in [Device::Cpu].into_iter().chain(devices()) {
        for dtype in [DType::F32, DType::BF16] {
            let mut model = Siglip::new(&builder(dtype, &device), &sizes()).unwrap();
            let images = images(2).cast(DType::F32).unwrap().to_device(&device).unwrap();
            let ids = ids(&device);
            let run = |model: &Siglip| {
                let (loss, grads) = step(model, &images, &ids).unwrap();
                let grads: Vec<f64> =
                    model.params().iter().flat_map(|p| grads.get(p).unwrap().to_f64().unwrap()).collect();
                (loss, grads)
            };
            let kept = run(&model);
            model.set_recompute(true);
            assert!(run(&model) == kept);
        }
    }
}

/// A recorded step runs again with other texts and images: nothing is uploaded inside, and no order of an older batch stays.
#[test]
fn recorded_steps_take_other_inputs() {
    for device in devices() {
        let model = Siglip::new(&builder(DType::F32, &device), &sizes()).unwrap();
        let images = |seed| random(&sizes().images(2), seed).cast(DType::F32).unwrap().to_device(&device).unwrap();
        let other = TokenIds::new(&[5, 5, 5, 5, 5, 12, 0, 2, 1, 1], 5, 13, &device).unwrap();
        let run = |images: &Tensor, ids: &TokenIds, grads: &mut Grads| {
            let tape = Tape::new();
            let x = l2_normalize(&tape, &model.vision.forward(&tape, &Var::constant(images.clone()), None)?)?;
            let y = l2_normalize(&tape, &model.text.forward(&tape, ids)?)?;
            let (scale, bias) = (tape.param(&model.logit_scale), tape.param(&model.logit_bias));
            let (loss, _) = sigmoid_pair_loss(&tape, &x, &y, &scale, &bias, Block::whole(2))?;
            let value = loss.value().clone();
            tape.backward_scaled(&loss, 1.0, grads)?;
            Ok(value)
        };
        let all = |grads: &Grads| -> Vec<f64> {
            model.params().iter().flat_map(|p| grads.get(p).unwrap().to_f64().unwrap()).collect()
        };
        let mut eager = Grads::new();
        let expected = run(&images(2), &other, &mut eager).unwrap().item().unwrap();

        let (mut held, mut ids, mut grads) = (images(1), ids(&device), Grads::new());
        let warm: Result<Tensor> = run(&held, &ids, &mut grads);
        assert_ne!(warm.unwrap().item().unwrap(), expected);
        grads.clear();
        let (loss, mut graph) = device.record(|| run(&held, &ids, &mut grads)).unwrap();
        held.copy_from(&images(2)).unwrap();
        let mut other = other.clone();
        for (to, from) in ids.tensors().into_iter().zip(other.tensors()) {
            to.copy_from(from).unwrap();
        }
        graph.replay().unwrap();
        assert_eq!(loss.item().unwrap(), expected);
        assert!(all(&grads) == all(&eager));
    }
}

/// A border that holds no whole patch is not looked at.
#[test]
fn a_border_belongs_to_no_patch() {
    let model = shaken(Siglip::new(&double(), &sizes()).unwrap());
    let images = images(1);
    let y = |images: &Tensor| {
        let y = model.vision.forward(&Tape::no_grad(), &Var::constant(images.clone()), None).unwrap();
        y.value().to_f64().unwrap()
    };
    let changed = |at: usize| {
        let mut values = images.to_f64().unwrap();
        values[at] += 1.0;
        Tensor::from_slice(&values, images.shape().clone(), &Device::Cpu).unwrap()
    };
    assert_eq!(y(&images), y(&changed(9 * 9)), "the first row below the patches");
    assert_ne!(y(&images), y(&changed(9 * 8 + 8)), "the last row of the patches");
}

#[test]
fn bytes_are_normalised_on_the_way() {
    let model = Siglip::new(&double(), &sizes()).unwrap();
    let shape = sizes().images(1);
    let bytes: Vec<u8> = (0..shape.iter().product::<usize>()).map(|i| (i * 37 % 256) as u8).collect();
    let floats: Vec<f64> = bytes.iter().map(|&b| (f64::from(b) / 255.0 - 0.5) / 0.5).collect();
    let norm = Tensor::from_slice(&[0.5f64; 4], [2, 2], &Device::Cpu).unwrap();
    let y = |images: Tensor, norm| {
        model.vision.forward(&Tape::no_grad(), &Var::constant(images), norm).unwrap().value().to_f64().unwrap()
    };
    let of_bytes = y(Tensor::from_slice(&bytes, shape, &Device::Cpu).unwrap(), Some(&norm));
    let of_floats = y(Tensor::from_slice(&floats, shape, &Device::Cpu).unwrap(), None);
    assert!(of_bytes.iter().zip(of_floats).all(|(a, b)| (a - b).abs() < 1e-12));
}

fn head(x: &Tensor, seqs: &[i32]) -> (Vec<f64>, Vec<f64>) {
    let tower = sizes().vision;
    let head = shaken(MapHead::new(&double(), &tower, 1e-6).unwrap());
    let longest = seqs.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap();
    let seqs = Sequences { cu_seqlens: Tensor::from_slice(seqs, [seqs.len()], &Device::Cpu).unwrap(), max: longest };
    let queries = Queries::new(seqs.count(), &Device::Cpu).unwrap();
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let y = head.forward(&tape, &tape.leaf(x.clone()), &seqs, &queries).unwrap();
    let out = y.value().to_f64().unwrap();
    tape.backward(&y, Tensor::full(y.value().shape().clone(), 1f64, &Device::Cpu).unwrap(), &mut grads).unwrap();
    (out, grads.get(&head.probe).unwrap().to_f64().unwrap())
}

/// Pooling does not know an order of tokens; each image is pooled by itself, and the probe hears from all.
#[test]
fn the_head_pools_sets() {
    let rows = |order: &[usize]| {
        let all = random(&[7, 12], 3).to_f64().unwrap();
        let values: Vec<f64> = order.iter().flat_map(|&r| all[r * 12..][..12].to_vec()).collect();
        Tensor::from_slice(&values, [order.len(), 12], &Device::Cpu).unwrap()
    };
    let close = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
    let (both, probe) = head(&rows(&[0, 1, 2, 3, 4, 5, 6]), &[0, 4, 7]);
    let (turned, _) = head(&rows(&[3, 1, 0, 2, 6, 5, 4]), &[0, 4, 7]);
    assert!(close(&both, &turned));
    let ((first, of_first), (second, of_second)) =
        (head(&rows(&[0, 1, 2, 3]), &[0, 4]), head(&rows(&[4, 5, 6]), &[0, 3]));
    assert!(close(&both, &[first, second].concat()));
    let sum: Vec<f64> = of_first.iter().zip(of_second).map(|(a, b)| a + b).collect();
    assert!(close(&probe, &sum));
    // Of equal tokens, what attention gives is their value whatever the probe asks.
    let (_, probe) = head(&rows(&[2, 2, 2]), &[0, 3]);
    assert!(probe.iter().all(|g| g.abs() < 1e-12));
}

/// Images of any shape by their patches: those of the tower's own shape give what images give, and no image sees another.
#[test]
fn images_of_different_shapes_share_a_batch() {
    let sizes = square();
    let model = shaken(Siglip::new(&double(), &sizes).unwrap());
    let none = Tape::no_grad();
    let pixels = random(&sizes.images(1), 5);
    let all = Tensor::from_slice(&(0..9i32).collect::<Vec<_>>(), [1, 9], &Device::Cpu).unwrap();
    let own = crate::ops::masked_gather::forward(&pixels, &all, 3, None, DType::F64).unwrap();
    let y = |patches: &[f64], grids: &[(usize, usize)]| {
        let patches = Tensor::from_slice(patches, [patches.len() / 27, 27], &Device::Cpu).unwrap();
        let shapes = Shapes::new(grids, (3, 3), &Device::Cpu).unwrap();
        model.vision.forward_shapes(&none, &Var::constant(patches), &shapes).unwrap().value().to_f64().unwrap()
    };
    let close = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
    let of_image = model.vision.forward(&none, &Var::constant(pixels), None).unwrap().value().to_f64().unwrap();
    let own = own.to_f64().unwrap();
    assert!(close(&y(&own, &[(3, 3)]), &of_image));
    let other = random(&[10, 27], 9).to_f64().unwrap();
    let both = y(&[own.clone(), other.clone()].concat(), &[(3, 3), (2, 5)]);
    assert!(close(&both, &[of_image, y(&other, &[(2, 5)])].concat()));
    assert!(!close(&y(&other, &[(2, 5)]), &y(&other, &[(5, 2)])), "positions follow the shape");
    let few = Tensor::from_slice(&other, [10, 27], &Device::Cpu).unwrap();
    let shapes = Shapes::new(&[(3, 3)], (3, 3), &Device::Cpu).unwrap();
    assert!(model.vision.forward_shapes(&none, &Var::constant(few), &shapes).is_err());
    assert!(Shapes::new(&[(3, 0)], (3, 3), &Device::Cpu).is_err());
}

/// Padding takes part in attention: another pad id, or another length, is another text.
#[test]
fn padding_is_read_like_any_token() {
    let tower = shaken(TextTower::new(&double(), &sizes()).unwrap());
    let y = |ids: &[i32], len: usize| {
        let ids = TokenIds::new(ids, len, 13, &Device::Cpu).unwrap();
        tower.forward(&Tape::no_grad(), &ids).unwrap().value().to_f64().unwrap()
    };
    let text = y(&[3, 12, 4, 1, 1], 5);
    assert_ne!(text, y(&[3, 12, 4, 0, 1], 5));
    assert_ne!(text, y(&[3, 12, 4, 1], 4));
    let two = y(&IDS, 5);
    assert!(text.iter().zip(&two).all(|(a, b)| (a - b).abs() < 1e-12), "texts do not see each other");
    let all = tower.encode(&Tape::no_grad(), &ids(&Device::Cpu)).unwrap();
    let last = Tensor::from_slice(&all.value().to_f64().unwrap()[9 * 8..], [1, 8], &Device::Cpu).unwrap();
    let last = tower.head.forward(&Tape::no_grad(), &Var::constant(last), None).unwrap();
    assert!(last.value().to_f64().unwrap().iter().zip(&two[12..]).all(|(a, b)| (a - b).abs() < 1e-12));
}

/// Variances of big_vision's initial values, and the published numbers of parameters and tensors.
#[test]
fn models_start_as_published() {
    let sizes = Sizes { vocab_size: 500, ..Preset::sizes(&"tiny".parse().unwrap(), None, None) };
    let model = Siglip::new(&builder(DType::F32, &Device::Cpu), &sizes).unwrap();
    let moments = |name: &str| {
        let p = model.params().into_iter().find(|p| p.name() == name).unwrap().master.to_f64().unwrap();
        let (n, sum) = (p.len() as f64, p.iter().sum::<f64>());
        let square = p.iter().map(|x| x * x).sum::<f64>() / n;
        (sum / n, square.sqrt(), p.iter().fold(0.0f64, |m, x| m.max(x.abs())))
    };
    let width: f64 = 192.0;
    let xavier = |fans: f64| (2.0 / fans).sqrt();
    let block = "vision_model.encoder.layers.3";
    for (name, std) in [
        ("vision_model.embeddings.patch_embedding.weight", (3.0f64 * 256.0).powf(-0.5)),
        ("vision_model.embeddings.position_embedding.weight", width.powf(-0.5)),
        ("text_model.embeddings.token_embedding.weight", width.powf(-0.5)),
        ("text_model.head.weight", width.powf(-0.5)),
        (&format!("{block}.self_attn.qkv_proj.weight"), xavier(2.0 * width)),
        (&format!("{block}.self_attn.out_proj.weight"), xavier(2.0 * width)),
        (&format!("{block}.mlp.fc1.weight"), xavier(5.0 * width)),
        (&format!("{block}.mlp.fc1.bias"), 1e-6),
        ("vision_model.head.attention.kv_proj.weight", xavier(2.0 * width)),
    ] {
        let (mean, found, _) = moments(name);
        assert!((found / std - 1.0).abs() < 0.06 && mean.abs() < 0.1 * std, "{name}: {mean} {found}, expected {std}");
    }
    let cut = moments("text_model.head.weight").2;
    assert!(cut <= 2.0 * width.powf(-0.5) / 0.879 && cut > 1.9 * width.powf(-0.5), "{cut}");
    assert_eq!(model.logit_scale.master.item().unwrap() as f32, 10f32.ln());
    assert_eq!(model.logit_bias.master.item().unwrap(), -10.0);
    assert_eq!(moments("vision_model.head.attention.q_proj.bias").2, 0.0);
}

/// Numbers of parameters of published models, from shapes alone.
#[test]
fn presets_have_the_published_numbers_of_parameters() {
    let count = |s: &Sizes| {
        let block = |t: &Tower| 4 * t.width * (t.width + 1) + 4 * t.width + t.hidden * (2 * t.width + 1) + t.width;
        let [h, w] = s.grid().unwrap();
        let (v, t) = (&s.vision, &s.text);
        let image = v.width * (s.in_chans * s.patch_size * s.patch_size + 1 + h * w);
        let head = v.width + 4 * v.width * (v.width + 1) + 2 * v.width + v.hidden * (2 * v.width + 1) + v.width;
        let text = t.width * (s.vocab_size + s.context_len) + 2 * t.width + s.embed_dim * (t.width + 1);
        image + v.depth * block(v) + 2 * v.width + head + text + t.depth * block(t) + 2
    };
    let small = sizes();
    let model = Siglip::new(&double(), &small).unwrap();
    assert_eq!(count(&small), model.trainable());
    let of = |name: &str| name.parse::<Preset>().unwrap().sizes(None, None);
    assert_eq!(count(&of("base")), 203_155_970);
    assert_eq!(count(&of("large")) / 1_000_000, 652);
    assert_eq!(count(&of("so400m")) / 1_000_000, 877); // 878 rounded
    assert_eq!(of("so400m").grid().unwrap(), [27, 27]);
    assert_eq!(count(&of("giant-opt")) / 10_000_000, 187);
    assert_eq!(count(&Sizes { vocab_size: 256_000, ..of("base") }) / 1_000_000, 375);
}

#[test]
fn wrong_arguments_are_named() {
    let text = |ids: &[i32], len| TokenIds::new(ids, len, 13, &Device::Cpu);
    assert!(text(&[1, 13], 2).unwrap_err().to_string().contains("`ids[1]` has value 13, expected an index below 13"));
    assert!(text(&[1, 2, 3], 2).unwrap_err().to_string().contains("whole texts of 2 tokens"));
    assert!(text(&[], 0).is_err());
    let model = Siglip::new(&double(), &sizes()).unwrap();
    let none = Tape::no_grad();
    let error = model.text.forward(&none, &text(&[1; 6], 6).unwrap()).unwrap_err().to_string();
    assert_eq!(error, "text_tower: `ids` has length 6, expected at most 5");
    let other = TokenIds::new(&[1; 5], 5, 14, &Device::Cpu).unwrap();
    let error = model.text.forward(&none, &other).unwrap_err().to_string();
    assert!(error.contains("`table` has length 13, expected 14 rows"), "{error}");
    let wrong = Var::constant(random(&[1, 2, 9, 9], 1));
    let error = model.vision.forward(&none, &wrong, None).unwrap_err().to_string();
    assert!(error.contains("[1, 2, 9, 9], expected [1, 2, 11, 9]"), "{error}");
    for (sizes, message) in [
        (Sizes { image_size: [2, 9], ..sizes() }, "image_size"),
        (Sizes { embed_dim: 10, ..sizes() }, "embed_dim"),
        (Sizes { vocab_size: 0, ..sizes() }, "vocab_size"),
    ] {
        let error = Siglip::new(&double(), &sizes).unwrap_err();
        assert!(matches!(error, Error::Config { .. }) && error.to_string().contains(message), "{error}");
    }
}

fn square() -> Sizes {
    Sizes { image_size: [9, 9], in_chans: 3, vision_head: false, ..sizes() }
}

/// A folder that is written is the model that is read, with its sizes, also without this crate's own metadata.
#[test]
fn folders_of_transformers_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let model = shaken(Siglip::new(&builder(DType::F32, &Device::Cpu), &square()).unwrap());
    load::save(folder.path(), &model, &square()).unwrap();
    let same = |path: &std::path::Path| {
        let (back, sizes) = load::model(path, &Device::Cpu, DType::F32, None).unwrap();
        assert_eq!(sizes, square());
        for (a, b) in model.params().into_iter().zip(back.params()) {
            assert_eq!((a.name(), a.master.to_f64().unwrap()), (b.name(), b.master.to_f64().unwrap()));
        }
    };
    same(folder.path());
    let file = folder.path().join("model.safetensors");
    let mut dict = crate::checkpoint::safetensors::read(&file).unwrap();
    assert!(dict.contains("vision_model.encoder.layers.1.self_attn.k_proj.weight"));
    assert_eq!(dict.require("vision_model.head.attention.in_proj_weight").unwrap().shape()[..], [36, 12]);
    dict.metadata.clear();
    crate::checkpoint::safetensors::write(&file, &dict).unwrap();
    same(folder.path());
    same(&file);

    let error = load::save(folder.path(), &model, &Sizes { image_size: [9, 12], ..square() }).unwrap_err();
    assert!(error.to_string().contains("image_size"), "{error}");
}

/// An archive of big_vision says everything but the activation.
#[test]
fn archives_of_big_vision_are_models() {
    use std::io::Write;
    let file = tempfile::Builder::new().suffix(".npz").tempfile().unwrap();
    let one = tempfile::NamedTempFile::new().unwrap();
    for vision_head in [false, true] {
        let sizes = Sizes { vision_head, embed_dim: if vision_head { 10 } else { 12 }, ..square() };
        let model = shaken(Siglip::new(&builder(DType::F32, &Device::Cpu), &sizes).unwrap());
        let dict = siglip::to_big_vision(&StateDict::from_params(model.params()).unwrap(), [3, 2]).unwrap();
        let mut zip = zip::ZipWriter::new(std::fs::File::create(file.path()).unwrap());
        for (name, tensor) in dict.iter() {
            crate::checkpoint::npy::write(one.path(), tensor).unwrap();
            zip.start_file(format!("params/{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(&std::fs::read(one.path()).unwrap()).unwrap();
        }
        zip.finish().unwrap();
        assert_eq!(load::weights(file.path()).unwrap().resample, Resample::Corners);
        let (back, found) = load::model(file.path(), &Device::Cpu, DType::F32, None).unwrap();
        assert_eq!(found, sizes);
        for (a, b) in model.params().into_iter().zip(back.params()) {
            assert_eq!((a.name(), a.master.to_f64().unwrap()), (b.name(), b.master.to_f64().unwrap()));
        }
    }
}

/// Another resolution takes resampled positions, in the way of whoever made the file; anything else that differs is an error.
#[test]
fn other_sizes_are_resampled_or_refused() {
    let model = shaken(Siglip::new(&builder(DType::F32, &Device::Cpu), &square()).unwrap());
    let dict = || StateDict::from_params(model.params()).unwrap();
    let positions = dict().require(siglip::POSITIONS).unwrap().clone();
    let weights = |resample| load::Weights { dict: dict(), sizes: square(), resample };
    let wide = Sizes { image_size: [12, 16], ..square() };
    for how in [Resample::Bicubic, Resample::Corners, Resample::Bilinear] {
        let mut other = Siglip::new(&builder(DType::F32, &Device::Cpu), &wide).unwrap();
        load::initialise(&mut other, &wide, &weights(how)).unwrap();
        let expected = resample(&positions.reshape([1, 9, 12]).unwrap(), (3, 3), (4, 5), how).unwrap();
        assert_eq!(other.vision.position_embedding.master.to_f64().unwrap(), expected.to_f64().unwrap());
    }
    let refused = |sizes: Sizes| {
        let mut other = Siglip::new(&builder(DType::F32, &Device::Cpu), &sizes).unwrap();
        let error = load::initialise(&mut other, &sizes, &weights(Resample::Bicubic)).unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }));
        error.to_string()
    };
    let error = refused(Sizes { vocab_size: 14, ..square() });
    assert!(
        error.contains("`text_model.embeddings.token_embedding.weight` has shape [13, 8], expected [14, 8]"),
        "{error}"
    );
    let error = refused(Sizes { context_len: 4, ..square() });
    assert!(error.contains("`text_model.embeddings.position_embedding.weight` has shape [5, 8]"), "{error}");
    let error = refused(Sizes { vision: Tower { heads: 2, ..square().vision }, ..square() });
    assert!(error.contains("has 3 attention heads in its image tower, expected 2"), "{error}");
    let error = refused(Sizes { vision_head: true, ..square() });
    assert!(error.contains("visual_projection.weight"), "{error}");
}
